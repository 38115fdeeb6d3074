# mypy: disable-error-code="attr-defined, call-arg, untyped-decorator"
"""Attention of requests with several new tokens, on the CPU, from the blocks of the KV cache: prompts, whole or cut.

For each head of the cache the new tokens are taken in pieces of QUERIES, and the positions that they see in parts of
PART from position 0 on, whose keys and values are brought together once a piece. Products of four tokens at a time keep
their sums in the registers. A token's sums are taken in an order that follows from its position alone: its batch-mates,
the number of threads and the cut of its prompt, unless it is alone in a cut, change no bit. Source: FlashAttention-2,
arXiv 2307.08691.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import carray, njit, prange, types
from numba.extending import intrinsic
from torch import Tensor

from atoll.kernels.cpu.attention import LOWEST, NO_WINDOW, highest_of
from atoll.kernels.cpu.exp import exp
from atoll.kernels.cpu.fused import KINDS
from atoll.kernels.cpu.threads import num_threads
from atoll.kernels.cpu.values import (
    FAST,
    INDEX,
    LANES,
    VECTOR,
    Array,
    emit_loop,
    like,
    multiply_add,
    pointer,
    spread,
    to_float32,
)

PART = 128
QUERIES = 64
_ROWS = 4
# Of the 32 registers of AVX-512, 16 hold a tile's sums; of the 16 of AVX2, 8.
_NUM_VECTORS = LANES // 4
_COLUMNS = LANES * _NUM_VECTORS


class ChunkPlan(NamedTuple):
    """A step's chunks in pieces, the longest first. table: [requests, max_blocks] int32.

    pieces: [n, 4] int64: request, first row of q, number of rows, position of the first one.
    """

    pieces: Array
    table: Array
    block_size: int


def make_chunk_plan(chunks: Iterable[tuple[int, int, int, int]], table: Array, block_size: int) -> ChunkPlan:
    """chunks: (request, first row of q, stop, number of the request's positions, with these)."""
    pieces = [
        (request, row, min(QUERIES, stop - row), length - (stop - row))
        for request, start, stop, length in chunks
        for row in range(start, stop, QUERIES)
    ]
    pieces.sort(key=lambda piece: -piece[2] * (piece[3] + piece[2]))
    return ChunkPlan(np.array(pieces, np.int64).reshape(-1, 4), table, block_size)


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    plan: ChunkPlan,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> None:
    """Fill the rows of `out` that the plan names; arguments as those of `cpu.attention.decode`."""
    _attend(
        KINDS[q.dtype], q.data_ptr(), q.stride(0), keys.data_ptr(), values.data_ptr(), out.data_ptr(),
        *out.shape, *keys.shape, plan.block_size, plan.table, plan.pieces, float(scale), float(softcap or 0),
        window or NO_WINDOW, num_threads(len(plan.pieces) * keys.shape[1]),
    )  # fmt: skip


@intrinsic
def _add_tile(
    typing_context: Any, sums: Any, sums_bytes: Any, factors: Any, factors_bytes: Any, rows: Any, row_bytes: Any,
    num_rows: Any,
) -> Any:  # fmt: skip
    """sums [4, _COLUMNS] += factors [4, num_rows] @ rows [num_rows, _COLUMNS], all float32.

    sums, factors, rows: addresses, each followed by how far one row is from the next. numba has no vectors: its own
    loops would keep the sums in memory.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        sums, sums_bytes, factors, factors_bytes, rows, row_bytes, num_rows = arguments

        def at(address: ir.Value, count: ir.Value, size: ir.Value, what: ir.Type, offset: int = 0) -> ir.Value:
            place = builder.add(builder.add(address, builder.mul(count, size)), INDEX(offset))
            return builder.inttoptr(place, ir.PointerType(what))

        places = range(0, 4 * _COLUMNS, 4 * LANES)
        where = [at(sums, INDEX(row), sums_bytes, VECTOR, place) for row in range(_ROWS) for place in places]
        before = [builder.load(address, align=4) for address in where]

        def emit_step(index: ir.Value, totals: Sequence[ir.Value]) -> list[ir.Value]:
            loaded = [builder.load(at(rows, index, row_bytes, VECTOR, place), align=4) for place in places]
            grown = []
            for row in range(_ROWS):
                start = builder.add(factors, builder.mul(factors_bytes, INDEX(row)))
                factor = builder.load(at(start, index, INDEX(4), ir.FloatType()), align=4)
                everywhere, own = spread(builder, factor, LANES), totals[row * _NUM_VECTORS : (row + 1) * _NUM_VECTORS]
                grown += [multiply_add(builder, everywhere, x, total) for x, total in zip(loaded, own, strict=True)]
            return grown

        grown = emit_loop(builder, num_rows, 1, before, emit_step)
        for address, total in zip(where, grown, strict=True):
            builder.store(total, address, align=4)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 7), generate


@njit(nogil=True)
def _gather(
    keys: Array, values: Array, kv_head: int, blocks: Array, block_size: int, start: int, count: int, across: Array,
    down: Array,
) -> None:  # fmt: skip
    """across [key_dim, >= count] and down [>= count, >= value_dim] = keys, transposed, and values from `start` on."""
    for t in range(count):
        row = blocks[(start + t) // block_size] * block_size + (start + t) % block_size
        for d in range(keys.shape[2]):
            across[d, t] = to_float32(keys[row, kv_head, d])
        for d in range(values.shape[2]):
            down[t, d] = to_float32(values[row, kv_head, d])


@njit(fastmath=FAST, nogil=True)
def _weigh(scores: Array, first: int, stop: int, softcap: np.float32, state: Array, sums: Array) -> None:
    """Turn one token's scores [first, stop) into weights, the others into 0; bring state and sums up to date.

    state: the highest score so far and the sum of the weights relative to it. sums: of the values, weighted so.
    """
    scores[:first], scores[max(first, stop) :] = 0, 0
    if first >= stop:
        return
    seen = scores[first:stop]
    if softcap > 0:
        for t in range(len(seen)):
            seen[t] = np.tanh(seen[t] / softcap) * softcap
    highest = max(state[0], highest_of(seen))
    share, total = exp(state[0] - highest), np.float32(0)
    for t in range(len(seen)):
        seen[t] = exp(seen[t] - highest)
        total += seen[t]
    state[0], state[1] = highest, state[1] * share + total
    for d in range(len(sums)):
        sums[d] *= share


@njit(nogil=True)
def _add_part(
    position: int, count: int, start: int, num: int, window: int, softcap: np.float32, queries: Array, across: Array,
    down: Array, scores: Array, state: Array, sums: Array,
) -> None:  # fmt: skip
    """Let one head's tokens, from `position` on, see the positions [start, start + num)."""
    for i in range(0, count, _ROWS):
        num_seen = min(num, position + i + _ROWS - start)
        if num_seen <= 0 or position + i - window + 1 >= start + num:
            continue
        scores[:] = 0
        for column in range(0, num_seen, _COLUMNS):
            _add_tile(
                scores[:, column:].ctypes.data, scores.strides[0], queries[i:].ctypes.data, queries.strides[0],
                across[:, column:].ctypes.data, across.strides[0], queries.shape[1],
            )  # fmt: skip
        for j in range(_ROWS):
            own = position + i + j - start
            stop = min(num_seen, own + 1) if i + j < count else 0
            _weigh(scores[j, :num_seen], max(0, own - window + 1), stop, softcap, state[i + j], sums[i + j])
        for column in range(0, sums.shape[1], _COLUMNS):
            _add_tile(
                sums[i:, column:].ctypes.data, sums.strides[0], scores.ctypes.data, scores.strides[0],
                down[:, column:].ctypes.data, down.strides[0], num_seen,
            )  # fmt: skip


@njit(nogil=True)
def _attend_piece(
    piece: Array, kv_head: int, q: Array, keys: Array, values: Array, out: Array, blocks: Array, block_size: int,
    scale: np.float32, softcap: np.float32, window: int, queries: Array, across: Array, down: Array, scores: Array,
    state: Array, sums: Array,
) -> None:  # fmt: skip
    """One piece of the plan with one head of the cache."""
    row, count, position, dim = piece[1], piece[2], piece[3], keys.shape[2]
    group = len(queries)
    queries[:], state[:, :, 0], state[:, :, 1], sums[:] = 0, LOWEST, 0, 0
    for h in range(group):
        for i in range(count):
            for d in range(dim):
                queries[h, i, d] = to_float32(q[row + i, (kv_head * group + h) * dim + d]) * scale
    for start in range(max(0, position - window + 1) // PART * PART, position + count, PART):
        num = min(PART, position + count - start)
        _gather(keys, values, kv_head, blocks, block_size, start, num, across, down)
        for h in range(group):
            _add_part(position, count, start, num, window, softcap, queries[h], across, down, scores, state[h], sums[h])
    for h in range(group):
        for i in range(count):
            part = np.float32(1) / state[h, i, 1]
            for d in range(out.shape[2]):
                out[row + i, kv_head * group + h, d] = like(sums[h, i, d] * part, out[0, 0, 0])


@njit(nogil=True, parallel=True, cache=True)
def _attend(
    kind: Array, q_address: int, q_stride: int, keys_address: int, values_address: int, out_address: int,
    num_rows: int, num_heads: int, value_dim: int, num_positions: int, num_kv_heads: int, key_dim: int,
    block_size: int, table: Array, pieces: Array, scale: float, softcap: float, window: int, num_threads: int,
) -> None:  # fmt: skip
    """kind: an empty array of the tensors' type, float32 or uint16 (bfloat16). softcap: 0 for none."""
    q = carray(pointer(q_address), (num_rows, q_stride), kind.dtype)
    keys = carray(pointer(keys_address), (num_positions, num_kv_heads, key_dim), kind.dtype)
    values = carray(pointer(values_address), (num_positions, num_kv_heads, value_dim), kind.dtype)
    out = carray(pointer(out_address), (num_rows, num_heads, value_dim), kind.dtype)
    group, factor, cap = num_heads // num_kv_heads, np.float32(scale), np.float32(softcap)
    wide = (value_dim + _COLUMNS - 1) // _COLUMNS * _COLUMNS
    for thread in prange(num_threads):
        queries = np.empty((group, QUERIES, key_dim), np.float32)
        state, sums = np.empty((group, QUERIES, 2), np.float32), np.empty((group, QUERIES, wide), np.float32)
        # Rows a power of two apart would fall on the same lines of the cache.
        across, down = np.zeros((key_dim, PART + LANES), np.float32), np.zeros((PART, wide), np.float32)
        scores = np.empty((_ROWS, PART), np.float32)
        for unit in range(thread, len(pieces) * num_kv_heads, num_threads):
            piece = pieces[unit // num_kv_heads]
            _attend_piece(
                piece, unit % num_kv_heads, q, keys, values, out, table[piece[0]], block_size, factor, cap, window,
                queries, across, down, scores, state, sums,
            )  # fmt: skip
