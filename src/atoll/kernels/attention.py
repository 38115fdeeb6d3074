"""Causal attention over packed examples (training) and over a paged KV cache (engine), by the best kernel for each.

A window of w lets the token at position p see positions p - w + 1 ... p, as transformers defines it. Heads may be
grouped (GQA): num_heads is a multiple of num_kv_heads.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from atoll.kernels.cpu import attention as cpu
from atoll.kernels.cpu import chunk_attention as cpu_chunks
from atoll.kernels.cpu import packed as cpu_packed
from atoll.kernels.cpu.fused import KINDS
from atoll.kernels.cpu.values import Array
from atoll.kernels.reference import attention as reference
from atoll.kernels.spans import Span


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: PackedLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of several examples packed in one row, each causal and blind to the others; differentiable.

    q: [tokens, num_heads, key_dim]. k, v: [tokens, num_kv_heads, key_dim or value_dim]. Returns [tokens, num_heads,
    value_dim].
    """
    if q.is_cpu and softcap is None:
        return cpu_packed.attend(q, k, v, layout.tiles, scale=scale, window=window)
    return reference.attend_packed(q, k, v, layout.spans, scale=scale, window=window, softcap=softcap)


class PackedLayout:
    """Who sees whom among packed examples; made once for all layers. The spans follow one another without gaps."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = tuple(spans)

    @cached_property
    def tiles(self) -> list[cpu_packed.Tile]:
        """The examples as the CPU's kernel takes them."""
        return cpu_packed.make_tiles(self.spans)


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    layout: PagedLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of a step's new tokens over all tokens of their own requests; inference only.

    q: [tokens, num_heads, key_dim]. k, v: [tokens, num_kv_heads, key_dim or value_dim], the new tokens' own, already in
    the cache. keys, values: one layer of the cache, [positions, num_kv_heads, dim]. A request's result does not depend
    on the others of its step, to the bit in float32. Returns [tokens, num_heads, value_dim], contiguous.
    """
    out = q.new_empty(q.shape[0], q.shape[1], values.shape[-1])
    has_kernel = q.dtype in KINDS and q.dtype == keys.dtype and keys.is_contiguous() and values.is_contiguous()
    if q.is_cpu and has_kernel:
        whole = q if q.stride(1) == q.shape[2] and q.stride(2) == 1 else q.contiguous()
        if layout.chunks:
            cpu_chunks.attend(whole, keys, values, out, layout.chunk_plan, scale=scale, window=window, softcap=softcap)
        if layout.singles:
            cpu.decode(whole, keys, values, out, layout.plan, scale=scale, window=window, softcap=softcap)
        return out
    for chunk in layout.placed_chunks:
        out[chunk.start : chunk.stop] = reference.attend_chunk(
            q, k, v, keys, values, chunk, scale=scale, window=window, softcap=softcap
        )
    if not layout.singles:
        return out
    if not has_kernel:
        for group in layout.groups:
            found = reference.attend_group(q, keys, values, group, scale=scale, window=window, softcap=softcap)
            out.index_copy_(0, group.rows, found)
    else:
        rows, found = decode_on_device(q, keys, values, layout, scale=scale, window=window, softcap=softcap)
        out.index_copy_(0, rows, found)
    return out


def decode_on_device(
    q: Tensor, keys: Tensor, values: Tensor, layout: PagedLayout, *, scale: float, window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The rows of requests with one new token, and their attention by CUDA's kernel; arguments as `paged_attention`."""
    from atoll.kernels.triton.attention import paged_decode

    rows, table, lengths, longest = layout.on_device
    return rows, paged_decode(
        q[rows], keys, values, table, lengths, block_size=layout.block_size, max_length=longest, scale=scale,
        window=window, softcap=softcap,
    )  # fmt: skip


class PagedLayout:
    """What all layers of one step share: where each request's tokens lie in the cache and who sees whom.

    chunks: requests with several new tokens: (request, its first row of q, stop, its number of positions). singles:
    those with one: (request, its row of q, its number of positions).
    """

    def __init__(
        self, query_start: Tensor, seq_lens: Tensor, block_table: Tensor, *, block_size: int, device: torch.device
    ) -> None:
        """query_start: [n + 1]; seq_lens: [n], with this step's tokens; block_table: [n, max_blocks]; all on CPU."""
        self.block_size = block_size
        self._block_table = block_table
        self._device = device
        self.chunks: list[tuple[int, int, int, int]] = []
        self.singles: list[tuple[int, int, int]] = []
        spans = itertools.pairwise(query_start.tolist())
        for request, ((start, stop), length) in enumerate(zip(spans, seq_lens.tolist(), strict=True)):
            if stop - start == 1:
                self.singles.append((request, start, length))
                continue
            self.chunks.append((request, start, stop, length))

    @classmethod
    def of_singles(cls, block_table: Tensor, seq_lens: Tensor, *, max_length: int, block_size: int) -> PagedLayout:
        """Requests with one new token each, whose tables and lengths CUDA's kernel reads when it runs, and not before.

        block_table: [n, max_blocks] int32, seq_lens: [n] int32, none above max_length; on the device.
        """
        device = block_table.device
        starts, longest = torch.arange(len(seq_lens) + 1), torch.full((len(seq_lens),), max_length)
        layout = cls(starts, longest, block_table, block_size=block_size, device=device)
        layout.on_device = starts[:-1].to(device), block_table, seq_lens, max_length
        return layout

    @cached_property
    def chunk_plan(self) -> cpu_chunks.ChunkPlan:
        """The chunks as the CPU's kernel takes them."""
        return cpu_chunks.make_chunk_plan(self.chunks, self._table, self.block_size)

    @cached_property
    def plan(self) -> cpu.Plan:
        """The singles as the CPU's kernel takes them."""
        return cpu.make_plan(self.singles, self._table, self.block_size)

    @cached_property
    def _table(self) -> Array:
        table: Array = self._block_table.int().contiguous().numpy()
        return table

    @cached_property
    def on_device(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """The singles as CUDA's kernel takes them: rows, block table, lengths, the longest length."""
        requests, rows, lengths = (list(column) for column in zip(*self.singles, strict=True))
        table = self._block_table[requests].int().to(self._device)
        sizes = torch.tensor(lengths, dtype=torch.int32).to(self._device)
        return torch.tensor(rows).to(self._device), table, sizes, max(lengths)

    @cached_property
    def placed_chunks(self) -> list[reference.Chunk]:
        """The chunks as the reference takes them."""
        placed = []
        for request, start, stop, length in self.chunks:
            positions = None
            if length > stop - start:
                own = self._block_table[request : request + 1].long()
                positions = reference.flat_positions(own, [length], self.block_size)[0].to(self._device)
            placed.append(reference.Chunk(start, stop, length, positions))
        return placed

    @cached_property
    def groups(self) -> list[reference.Group]:
        """The singles as the reference takes them."""
        return reference.make_groups(self.singles, self._block_table.long(), self.block_size, self._device)
