# ruff: noqa: N803
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"
"""Attention of one new token a request over a paged KV cache, on CUDA, straight from the cache's blocks.

Each request's tokens are cut into parts of a fixed length, attended to by one program for each head of the cache, and
put together in a second kernel (flash decoding). The parts depend on the request alone: its batch-mates change no bit.
Source: FlashAttention's online softmax, arXiv 2205.14135; PagedAttention, arXiv 2309.06180.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_PART_TOKENS = 256
_BLOCK_TOKENS = 32
_MIN_HEADS = 16  # of tl.dot, as all its sides


def paged_decode(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    block_size: int,
    max_length: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of each request's last token over all its tokens.

    q: [n, num_heads, key_dim]. keys, values: one layer of the cache, [positions, num_kv_heads, dim]. block_table:
    [n, max_blocks] int32; entries past a request's last block are not read. seq_lens: [n] int32, none above max_length.
    Last dimensions are contiguous. Returns [n, num_heads, value_dim] in q's dtype; sums are float32.
    """
    n, num_heads, key_dim = q.shape
    num_kv_heads, value_dim = values.shape[1:]
    group = num_heads // num_kv_heads
    num_parts = triton.cdiv(max_length, _PART_TOKENS)
    # The largest score and the sum of weights, then the weighted values.
    stats = torch.empty(n, num_heads, num_parts, 2, dtype=torch.float32, device=q.device)
    sums = torch.empty(n, num_heads, num_parts, value_dim, dtype=torch.float32, device=q.device)
    block_value = max(16, triton.next_power_of_2(value_dim))
    _attend[n, num_kv_heads, num_parts](
        q, keys, values, block_table, seq_lens, stats, sums,
        q.stride(0), q.stride(1), keys.stride(0), keys.stride(1), values.stride(0), values.stride(1),
        block_table.stride(0), scale, softcap or 0.0, window or 0,
        KEY_DIM=key_dim, VALUE_DIM=value_dim, GROUP=group, BLOCK_SIZE=block_size, PART=_PART_TOKENS,
        TOKENS=_BLOCK_TOKENS, HEADS=max(_MIN_HEADS, triton.next_power_of_2(group)),
        KEYS=max(16, triton.next_power_of_2(key_dim)), VALUES=block_value,
        HAS_SOFTCAP=softcap is not None, HAS_WINDOW=window is not None,
    )  # fmt: skip
    out = q.new_empty(n, num_heads, value_dim)
    _combine[n, num_heads](
        stats, sums, seq_lens, out, num_parts, VALUE_DIM=value_dim, PART=_PART_TOKENS, VALUES=block_value
    )
    return out


@triton.jit
def _attend(
    q, keys, values, block_table, seq_lens, stats, sums,
    q_stride, q_head_stride, key_stride, key_head_stride, value_stride, value_head_stride,
    table_stride, scale, softcap, window,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, GROUP: tl.constexpr, BLOCK_SIZE: tl.constexpr, PART: tl.constexpr,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """One part of one request's tokens, for the heads that share one head of the cache."""
    request, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(seq_lens + request)
    begin, end = part * PART, min((part + 1) * PART, length)
    if HAS_WINDOW:
        begin = max(begin, length - window)
    heads, dims, columns = tl.arange(0, HEADS), tl.arange(0, KEYS), tl.arange(0, VALUES)
    own_heads = kv_head * GROUP + heads
    query_place = q + request * q_stride + own_heads[:, None] * q_head_stride + dims[None, :]
    query = tl.load(query_place, mask=(heads[:, None] < GROUP) & (dims[None, :] < KEY_DIM), other=0.0)
    best = tl.full([HEADS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([HEADS], dtype=tl.float32)
    out = tl.zeros([HEADS, VALUES], dtype=tl.float32)
    for first in range(begin, end, TOKENS):
        token = first + tl.arange(0, TOKENS)
        is_seen = token < end
        block = tl.load(block_table + request * table_stride + token // BLOCK_SIZE, mask=is_seen, other=0)
        place = block.to(tl.int64) * BLOCK_SIZE + token % BLOCK_SIZE
        k_place = keys + place[None, :] * key_stride + kv_head * key_head_stride + dims[:, None]
        k = tl.load(k_place, mask=is_seen[None, :] & (dims[:, None] < KEY_DIM), other=0.0)
        scores = tl.dot(query, k, input_precision="ieee") * scale
        if HAS_SOFTCAP:
            scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp(scores - new_best[:, None])
        decay = tl.exp(best - new_best)
        v_place = values + place[:, None] * value_stride + kv_head * value_head_stride + columns[None, :]
        v = tl.load(v_place, mask=is_seen[:, None] & (columns[None, :] < VALUE_DIM), other=0.0)
        total = total * decay + tl.sum(weights, 1)
        out = tl.dot(weights.to(v.dtype), v, out * decay[:, None], input_precision="ieee")
        best = new_best
    index = (request * tl.num_programs(1) * GROUP + own_heads) * tl.num_programs(2) + part
    tl.store(stats + 2 * index, best, mask=heads < GROUP)
    tl.store(stats + 2 * index + 1, total, mask=heads < GROUP)
    is_own = (heads[:, None] < GROUP) & (columns[None, :] < VALUE_DIM)
    tl.store(sums + index[:, None] * VALUE_DIM + columns[None, :], out, mask=is_own)


@triton.jit
def _combine(stats, sums, seq_lens, out, num_parts, VALUE_DIM: tl.constexpr, PART: tl.constexpr, VALUES: tl.constexpr):
    """One head of one request from its parts."""
    request, head = tl.program_id(0), tl.program_id(1)
    row = request * tl.num_programs(1) + head
    columns = tl.arange(0, VALUES)
    best, total = float("-inf"), 0.0
    mean = tl.zeros([VALUES], dtype=tl.float32)
    for part in range(tl.cdiv(tl.load(seq_lens + request), PART)):
        index = row * num_parts + part
        part_best, part_total = tl.load(stats + 2 * index), tl.load(stats + 2 * index + 1)
        # A part that lies outside of the window has seen nothing.
        if part_total > 0:
            new_best = tl.maximum(best, part_best)
            decay, weight = tl.exp(best - new_best), tl.exp(part_best - new_best)
            part_sums = tl.load(sums + index * VALUE_DIM + columns, mask=columns < VALUE_DIM, other=0.0)
            mean = mean * decay + part_sums * weight
            total = total * decay + part_total * weight
            best = new_best
    tl.store(out + row * VALUE_DIM + columns, (mean / total).to(out.dtype.element_ty), mask=columns < VALUE_DIM)
