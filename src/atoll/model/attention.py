"""Attention as a context: transformers' models call our function, the caller says around them what attends to what.

The function is registered under the name "atoll". No mask function is registered beside it: for such a name
transformers builds no masks at all, and what each token may see follows from the context alone.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from atoll.errors import Incompatible
from atoll.kernels.attention import PackedLayout, PagedLayout, packed_attention, paged_attention
from atoll.kernels.cpu.layer import FewRowsLayer
from atoll.kernels.cpu.values import Array
from atoll.kernels.fused import rope_store
from atoll.kernels.kv import KVCache
from atoll.kernels.spans import Span

ATTENTION = "atoll"

# Arguments that attention modules hand on although they change nothing here: positions are in the rotary embedding
# already, caches and outputs are ours.
_WITHOUT_EFFECT = frozenset({"position_ids", "cache_position", "use_cache", "past_key_values", "return_dict"})


class PackedContext:
    """Examples packed in one row, each causal and blind to the others but for a prefix; gradients flow."""

    def __init__(self, spans: Sequence[Span]) -> None:
        """spans: one for each example, without gaps."""
        self._layout = PackedLayout(spans)

    @property
    def num_tokens(self) -> int:
        """Tokens of the row."""
        return self._layout.spans[-1].stop

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """q, k, v: [tokens, heads, dim]. Returns [tokens, heads, dim]."""
        return packed_attention(q, k, v, self._layout, **options)


class PagedContext:
    """One step of the engine: new tokens of many requests over a paged KV cache; inference only.

    kv_index: [tokens] int64 on the cache's device, the flat cache position of each new token.
    """

    def __init__(self, cache: KVCache, layout: PagedLayout, kv_index: Tensor) -> None:
        self._cache, self._layout, self._kv_index = cache, layout, kv_index

    @classmethod
    def of_step(
        cls, cache: KVCache, query_start: Tensor, seq_lens: Tensor, block_table: Tensor, kv_index: Tensor
    ) -> PagedContext:
        """query_start: [n + 1]; seq_lens: [n], all tokens of a request with this step's; block_table: [n, max_blocks],
        entries past a request's last block are ignored; kv_index: [tokens]. All integer and on CPU.
        """
        layout = PagedLayout(query_start, seq_lens, block_table, block_size=cache.block_size, device=cache.device)
        return cls(cache, layout, kv_index.long().to(cache.device))

    @property
    def num_tokens(self) -> int:
        """New tokens of the step."""
        return self._kv_index.shape[0]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """q, k, v: [tokens, heads, dim] of the new tokens. Returns [tokens, heads, dim]."""
        self._cache.write(layer, self._kv_index, k, v)
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        return paged_attention(q, k, v, keys, values, self._layout, **options)

    def run_layer(
        self, layer: int, kernel: FewRowsLayer, x: Tensor, cos: Tensor, sin: Tensor, segments: Array
    ) -> Tensor | None:
        """The whole layer by one kernel, or None where this step or these arguments are not for it.

        x: [tokens, hidden]. cos, sin: as for `attend_qkv`. segments: [n, 3] (slot, start, stop). Returns as x.
        """
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        if self._layout.chunks or not kernel.fits(x, cos, sin, keys, values):
            return None
        return kernel(x, cos, sin, segments, self._kv_index, keys, values, self._layout.plan)

    def attend_qkv(
        self,
        layer: int,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        num_heads: int,
        num_kv_heads: int,
        **options: Any,
    ) -> Tensor:
        """The same for queries, keys and values side by side that have not been rotated yet; changes `qkv`.

        qkv: [tokens, (num_heads + 2 * num_kv_heads) * dim], contiguous. cos, sin: [tokens, dim] or [1, tokens, dim].
        Returns [tokens, num_heads * dim].
        """
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        rope_store(qkv, cos, sin, self._kv_index, keys, values, num_heads)
        heads = qkv.view(len(qkv), -1, keys.shape[2])
        q, k, v = heads.split_with_sizes([num_heads, num_kv_heads, num_kv_heads], dim=1)
        return paged_attention(q, k, v, keys, values, self._layout, **options).view(len(qkv), -1)


class _Ambient:
    """The context in force. A paged context belongs to its thread, as engines do; a packed one to the process.

    Autograd recomputes checkpointed layers on threads of its own, which must find the packed context of the caller.
    """

    def __init__(self) -> None:
        self.packed: PackedContext | None = None
        self.thread = threading.local()
        self.lock = threading.Lock()

    @property
    def context(self) -> PackedContext | PagedContext | None:
        paged: PagedContext | None = getattr(self.thread, "paged", None)
        return paged or self.packed


_ambient = _Ambient()


def current_context() -> PagedContext:
    """The step of an engine that runs on this thread; raises RuntimeError outside of one."""
    context = _ambient.context
    if not isinstance(context, PagedContext):
        raise RuntimeError("a model fused for serving was run outside of an engine's step")
    return context


@contextlib.contextmanager
def attending(context: PackedContext | PagedContext) -> Iterator[None]:
    """Put `context` in force around a model's forward pass, and around `backward()` under gradient checkpointing.

    Raises RuntimeError when nested: two contexts at once mean that a caller has lost track of its own.
    """
    with _ambient.lock:
        if _ambient.context is not None:
            raise RuntimeError("attending() does not nest: another attention context is in force")
        if isinstance(context, PagedContext):
            _ambient.thread.paged = context
        else:
            _ambient.packed = context
    try:
        yield
    finally:
        if isinstance(context, PagedContext):
            _ambient.thread.paged = None
        else:
            _ambient.packed = None


def atoll_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function that transformers' attention modules call; the context in force decides what attends to what.

    query: [1, num_heads, tokens, dim]; key, value: [1, num_kv_heads, tokens, dim]. Returns [1, tokens, num_heads, dim].
    Raises RuntimeError outside `attending`, Incompatible for an argument that would change the result and is not
    implemented.
    """
    context = _ambient.context
    if context is None:
        raise RuntimeError("the model was run outside `with attending(...)`")
    refuse_unknown(module, {"attention_mask": attention_mask, "dropout": dropout, **others})
    if query.shape[0] != 1 or query.shape[2] != context.num_tokens:
        raise RuntimeError(f"the context is for [1, {context.num_tokens}] tokens, the input has {list(query.shape)}")
    out = context.attend(
        int(module.layer_idx),  # type: ignore[arg-type]
        *(x[0].transpose(0, 1) for x in (query, key, value)),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return out[None], None


def refuse_unknown(module: nn.Module, options: dict[str, Any]) -> None:
    """Raise Incompatible, by name, for attention options that would change the result and are not implemented here."""
    causal = options.pop("is_causal", None)
    if causal is False or getattr(module, "is_causal", True) is False:
        raise Incompatible(
            f"{type(module).__name__} attends in both directions", why="only causal models are supported"
        )
    for name, option in options.items():
        if name in _WITHOUT_EFFECT or name.startswith("output_") or option is None:
            continue
        if isinstance(option, Tensor) or option:
            raise Incompatible(
                f"{type(module).__name__} passes `{name}` to its attention",
                why="Atoll's attention does not implement it, and ignoring it would change the results",
            )


AttentionInterface.register(ATTENTION, atoll_attention)
