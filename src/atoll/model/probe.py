"""Before a base model is used: does what it asks of its attention mean what our attention will do?

transformers' architectures differ in what they keep to themselves: masks that follow no argument (chunks, prefixes),
layers without attention that carry a state from token to token, sinks, biases. Ours sees arguments only. So the model
runs once over a few tokens with an attention function that computes nothing: it compares, for every layer, the mask
that transformers would have built with the one that ours will derive, and notes the shapes that the KV cache needs.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from atoll.errors import Incompatible
from atoll.kernels.kv import KVShape
from atoll.model.attention import ATTENTION, refuse_unknown

_PROBE = "atoll_probe"
_CALLED_WITH = ("input_ids", "position_ids", "logits_to_keep")

_shapes: ContextVar[dict[int, KVShape]] = ContextVar("shapes of the layers seen by the probe")


def probe(model: PreTrainedModel) -> tuple[KVShape, ...]:
    """What each layer keeps of a token. Raises Incompatible where our attention would compute another thing."""
    _check_modules(model)
    shapes: dict[int, KVShape] = {}
    token = _shapes.set(shapes)
    model.set_attn_implementation(_PROBE)
    ids = torch.arange(4, device=model.device)[None]
    try:
        with torch.inference_mode():
            model(input_ids=ids, position_ids=ids, use_cache=False)
    except (TypeError, ValueError, LookupError, AttributeError, NotImplementedError) as error:
        raise Incompatible(f"{type(model).__name__} cannot be run over text alone", why=str(error)) from error
    finally:
        model.set_attn_implementation(ATTENTION)
        _shapes.reset(token)
    num_layers = model.config.get_text_config().num_hidden_layers
    if sorted(shapes) != list(range(num_layers)):
        raise Incompatible(
            f"{type(model).__name__} has layers without standard attention",
            why=f"only {len(shapes)} of its {num_layers} layers call transformers' attention interface",
        )
    return tuple(shapes[layer] for layer in range(num_layers))


def _check_modules(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if missing := [key for key in _CALLED_WITH if key not in inspect.signature(model.forward).parameters]:
        raise Incompatible(f"{name} cannot be called with {', '.join(missing)}")
    for path, module in model.named_modules():
        if isinstance(module, Conv1D):
            raise Incompatible(
                f"the projections of {name} are not nn.Linear",
                where=path,
                why="GPT-2's Conv1D stores its weight transposed, which adapters of this format do not fit",
            )
        if isinstance(module, nn.Conv1d):
            raise Incompatible(f"{name} mixes tokens outside its attention", where=path, why="it convolves over them")


def _probe_mask(q_length: int, kv_length: int, *, mask_function: Any, device: torch.device, **_: Any) -> Tensor:
    mask = torch.zeros(1, 1, q_length, kv_length, device=device)
    mask.atoll_function = mask_function  # type: ignore[attr-defined]
    return mask


def _probe_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    refuse_unknown(module, others)
    _check_mask(module, getattr(attention_mask, "atoll_function", None), sliding_window)
    _shapes.get()[int(module.layer_idx)] = KVShape(key.shape[1], key.shape[-1], value.shape[-1])  # type: ignore[arg-type]
    _, num_heads, num_tokens, _ = query.shape
    return query.new_zeros(1, num_tokens, num_heads, value.shape[-1]), None


def _check_mask(module: nn.Module, mask_function: Any, window: int | None) -> None:
    """Compare transformers' mask with causal-and-window at the positions where kinds of masks begin to differ."""
    steps = {2**i for i in range(20)} | {n * (window or 1) for n in (1, 2, 3)}
    near = sorted({max(step + shift, 0) for step in steps for shift in (-1, 0, 1)})
    positions = torch.tensor(near)
    query, key = positions[:, None], positions[None, :]
    ours = (key <= query) & (key > query - window) if window else key <= query
    first = torch.zeros(1, 1, dtype=torch.long)
    try:
        same = mask_function is not None and torch.equal(mask_function(first, first, query, key).expand_as(ours), ours)
    except (LookupError, RuntimeError):
        same = False  # a function of more than positions
    if not same:
        raise Incompatible(
            f"{type(module).__name__} masks its attention in a way that Atoll does not implement",
            where=f"layer {module.layer_idx}",
            why=f"its mask is not causal with the window {window} that it passes on",
        )


AttentionInterface.register(_PROBE, _probe_attention)
AttentionMaskInterface.register(_PROBE, _probe_mask)
