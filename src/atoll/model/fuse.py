"""Before serving: give the model's blocks packed weights and fused kernels where they compute as Llama's do.

What transformers defines stays the definition. A block is exchanged only where the code of its class is, word for word,
one of those below; architectures in transformers repeat that code, so this covers most of them. Every other block keeps
its own forward pass, with packed weights in its linear layers. A fused model serves: it has no gradients, and its dense
weights are given back.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
)
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from atoll.adapters.linear import LinearGroup, MultiLoRALinear
from atoll.kernels.cpu.layer import FewRowsLayer, Part
from atoll.kernels.fused import add_rms_norm, rms_norm, silu_mul
from atoll.kernels.linear import pack_modules
from atoll.model.attention import current_context

# How each known attention finds its window.
_WINDOWS: dict[type[nn.Module], Callable[[Any], int | None]] = {
    LlamaAttention: lambda attention: None,
    MistralAttention: lambda attention: getattr(attention.config, "sliding_window", None),
    Qwen2Attention: lambda attention: attention.sliding_window,
    Qwen3Attention: lambda attention: attention.sliding_window,
}


class FusedAttention(nn.Module):
    """Attention with one product for queries, keys and values, and rotation and cache in one kernel each."""

    def __init__(self, attention: Any, window: int | None, group: Callable[..., LinearGroup]) -> None:
        super().__init__()
        self.layer_idx: int = attention.layer_idx
        self.qkv = group(attention.q_proj, attention.k_proj, attention.v_proj)
        self.o = group(attention.o_proj)
        self.norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
        self._head_dim: int = attention.head_dim
        self.num_heads = attention.q_proj.out_features // attention.head_dim
        self._num_kv_heads = attention.k_proj.out_features // attention.head_dim
        self.scale: float = attention.scaling
        self.window = window

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states: [1, tokens, hidden]. Returns the same shape; the context in force decides who sees whom."""
        return self.attend(hidden_states[0], *position_embeddings)[None], None

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [tokens, hidden]. Returns the same shape."""
        qkv = self.qkv.forward(x)
        if self.norms is not None:
            self._normalise(qkv)
        out = current_context().attend_qkv(
            self.layer_idx,
            qkv,
            cos,
            sin,
            num_heads=self.num_heads,
            num_kv_heads=self._num_kv_heads,
            scale=self.scale,
            window=self.window,
            softcap=None,
        )
        return self.o.forward(out)

    def _normalise(self, qkv: Tensor) -> None:
        """Normalise every head's query and key in place (Qwen3)."""
        start = 0
        for norm, num_heads in zip(self.norms or (), (self.num_heads, self._num_kv_heads), strict=True):
            heads = qkv[:, start : start + num_heads * self._head_dim]
            heads.copy_(norm(heads.reshape(-1, self._head_dim)).view(heads.shape))
            start += num_heads * self._head_dim


class FusedMLP(nn.Module):
    """A gated MLP with one product for gate and up."""

    def __init__(self, mlp: Any, group: Callable[..., LinearGroup]) -> None:
        super().__init__()
        self.gate_up = group(mlp.gate_proj, mlp.up_proj)
        self.down = group(mlp.down_proj)
        self.has_silu = has_silu(mlp)
        self._gate = silu_mul if self.has_silu else _gated(mlp.act_fn)

    def forward(self, x: Tensor) -> Tensor:
        """x: [1, tokens, hidden]. Returns the same shape."""
        return self.combine(x[0])[None]

    def combine(self, x: Tensor) -> Tensor:
        """x: [tokens, hidden]. Returns the same shape."""
        return self.down.forward(self._gate(self.gate_up.forward(x)))


class FusedRMSNorm(nn.Module):
    """Llama's RMSNorm in one pass."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps: float = norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., hidden]. Returns the same shape."""
        return rms_norm(x.view(-1, x.shape[-1]), self.weight, self.eps).view(x.shape)


class FusedLayer(nn.Module):
    """A layer of fused parts. Calls them as plain functions: a module's call takes as long as a small kernel.

    Where the processor has a kernel for the whole layer, steps of one token a request take that.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.self_attn: FusedAttention = layer.self_attn
        self.mlp: FusedMLP = layer.mlp
        self.input_layernorm: FusedRMSNorm = layer.input_layernorm
        self.post_attention_layernorm: FusedRMSNorm = layer.post_attention_layernorm
        # Read once: a module looks its parts up slowly.
        before, after = self.input_layernorm, self.post_attention_layernorm
        self._norms = (before.weight.detach(), before.eps), (after.weight.detach(), after.eps)
        self._attend, self._combine = self.self_attn.attend, self.mlp.combine
        self._layer_idx, self._rows = self.self_attn.layer_idx, self.self_attn.qkv.rows
        self._kernel = self._few_rows_kernel()

    def forward(self, hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **others: Any) -> Tensor:
        """hidden_states: [1, tokens, hidden]. Returns the same shape."""
        x = hidden_states[0]
        if self._kernel is not None:
            segments = self._rows(len(x)).array
            found = current_context().run_layer(self._layer_idx, self._kernel, x, *position_embeddings, segments)
            if found is not None:
                return found[None]
        before, after = self._norms
        attended = self._attend(rms_norm(x, *before), *position_embeddings)
        x, normed = add_rms_norm(x, attended, *after)
        out: Tensor = x + self._combine(normed)
        return out[None]

    def _few_rows_kernel(self) -> FewRowsLayer | None:
        """The layer as one kernel, where the processor has it for all of its parts."""
        attention = self.self_attn
        groups = attention.qkv, attention.o, self.mlp.gate_up, self.mlp.down
        parts = [Part(group.product, group.table) for group in groups]
        if not (attention.norms is None and self.mlp.has_silu and FewRowsLayer.takes(self._norms, parts)):
            return None
        return FewRowsLayer(
            self._norms, parts, num_heads=attention.num_heads, scale=attention.scale, window=attention.window
        )


class PackedHead(nn.Module):
    """The output head with a packed copy of its weight, which the embedding may share."""

    def __init__(self, head: nn.Module, *, bits: int | None) -> None:
        super().__init__()
        self._product = pack_modules([head], bits=bits)
        self.in_features, self.out_features = self._product.in_features, self._product.out_features

    def forward(self, x: Tensor) -> Tensor:
        """x: [1, tokens, hidden]. Returns [1, tokens, vocab]. A step that ends no prompt has no tokens here."""
        if x.numel() == 0:
            return x.new_empty(*x.shape[:-1], self.out_features)
        return self._product(x[0])[None]


@torch.inference_mode()
def fuse(model: PreTrainedModel, *, bits: int | None = None) -> None:
    """Exchange the blocks of a model that has a bank of adapters already, in place and for good.

    bits 8: dense linear layers, the head as well, compute in 8 bits by row and column. Otherwise the answers are those
    of the model as it was, up to rounding. Adapters are loaded through the bank as before.
    """

    def group(*layers: MultiLoRALinear) -> LinearGroup:
        return LinearGroup(layers, bits=bits, drop_weights=True)

    head = model.get_output_embeddings()
    for parent, name, module in list(children(model)):
        if module is head:
            setattr(parent, name, PackedHead(module, bits=bits))
        elif (fused := _fused(module, group)) is not None:
            setattr(parent, name, fused)
    for parent, name, module in list(children(model)):
        if isinstance(module, MultiLoRALinear):
            setattr(parent, name, group(module))
        elif _has_fused_parts(module):
            setattr(parent, name, FusedLayer(module))


def children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every module below `model` with its parent and its name there; not what lies inside of a group."""
    for parent in model.modules():
        if not isinstance(parent, LinearGroup):
            yield from ((parent, name, child) for name, child in parent.named_children())


def _fused(module: nn.Module, group: Callable[..., LinearGroup]) -> nn.Module | None:
    kind = type(module)
    for known, window in _WINDOWS.items():
        if same_code(kind, known) and _same_rotation(kind):
            return FusedAttention(module, window(module), group)
    if same_code(kind, LlamaMLP):
        return FusedMLP(module, group)
    if same_code(kind, LlamaRMSNorm):
        return FusedRMSNorm(module)
    return None


def _has_fused_parts(layer: Any) -> bool:
    if not same_code(type(layer), LlamaDecoderLayer):
        return False
    norms = layer.input_layernorm, layer.post_attention_layernorm
    are_fused = all(isinstance(norm, FusedRMSNorm) for norm in norms)
    return are_fused and isinstance(layer.self_attn, FusedAttention) and isinstance(layer.mlp, FusedMLP)


def has_silu(mlp: Any) -> bool:
    """Whether a gated MLP's activation is SiLU, which transformers wraps in a class of its own."""
    return type(mlp.act_fn).__name__ in ("SiLU", "SiLUActivation")


def _gated(act_fn: nn.Module) -> Callable[[Tensor], Tensor]:
    def combine(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        product: Tensor = act_fn(gate) * up
        return product

    return combine


def _same_rotation(attention: type[nn.Module]) -> bool:
    rotate = _globals(attention).get("apply_rotary_pos_emb")
    return (
        rotate is not None
        and _code(rotate) == _code(apply_rotary_pos_emb)
        and (_code(rotate.__globals__["rotate_half"]) == _code(apply_rotary_pos_emb.__globals__["rotate_half"]))
    )


def _globals(kind: type[nn.Module]) -> Mapping[str, Any]:
    variables: Mapping[str, Any] = inspect.unwrap(kind.forward).__globals__
    return variables


def same_code(kind: type[nn.Module], known: type[nn.Module]) -> bool:
    """Whether a class of transformers computes, word for word, as a known one."""
    return kind is known or (
        kind.__module__.startswith("transformers.") and _code(kind.forward) == _code(known.forward)
    )


@cache
def _code(function: Callable[..., Any]) -> str:
    """The statements of a function, without its comments, documentation and annotations of arguments."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    assert isinstance(definition, ast.FunctionDef)
    is_documented = ast.get_docstring(definition) is not None
    return "\n".join(ast.unparse(statement) for statement in definition.body[is_documented:])
