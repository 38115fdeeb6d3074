# mypy: disable-error-code="attr-defined, call-arg, import-untyped, untyped-decorator"
"""Attention of requests with one new token each, on the CPU, straight from the blocks of the KV cache.

The positions that a token sees are cut into parts of PART from position 0 on, so that threads can share one long
request. The parts, and the order within and among them, follow from the request alone: its batch-mates and the number
of threads change no bit. Source: flash decoding (https://pytorch.org/blog/flash-decoding).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numba import carray, njit, prange
from torch import Tensor

from atoll.kernels.cpu.attention_vectors import MAX_HEADS, add_four, score_four
from atoll.kernels.cpu.exp import exp
from atoll.kernels.cpu.fused import KINDS
from atoll.kernels.cpu.threads import num_threads
from atoll.kernels.cpu.values import FAST, LANES, Array, like, pointer, to_float32

PART = 128
# Work for which another thread is worth waking.
_POSITIONS_PER_THREAD = 256
NO_WINDOW = 2**62
LOWEST = np.finfo(np.float32).min


class Plan(NamedTuple):
    """A step's work in pieces that take their turns on the threads, the longest first.

    pieces: [n, 6] int64: request, its row of q, first and last + 1 position, the number of all positions, and where the
    unfinished result goes, or -1 for the only piece of its row. merges: [m, 3] int64: row of q, first and last + 1
    unfinished result. table: [requests, max_blocks] int32.
    """

    pieces: Array
    merges: Array
    num_unfinished: int
    table: Array
    block_size: int
    max_threads: int


def make_plan(rows: Iterable[tuple[int, int, int]], table: Array, block_size: int) -> Plan:
    """rows: (request, its row of q, its number of positions)."""
    pieces, merges, num_unfinished, num_positions = [], [], 0, 0
    for request, row, length in rows:
        num_positions += length
        if length <= PART:
            pieces.append((request, row, 0, length, length, -1))
            continue
        first = num_unfinished
        for start in range(0, length, PART):
            pieces.append((request, row, start, min(start + PART, length), length, num_unfinished))
            num_unfinished += 1
        merges.append((row, first, num_unfinished))
    pieces.sort(key=lambda piece: piece[2] - piece[3])
    return Plan(
        np.array(pieces, np.int64).reshape(-1, 6),
        np.array(merges, np.int64).reshape(-1, 3),
        num_unfinished,
        table,
        block_size,
        max_threads=1 + num_positions // _POSITIONS_PER_THREAD,
    )


def decode(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    plan: Plan,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> None:
    """Fill the rows of `out` that the plan names.

    q: [rows, num_heads, key_dim], each row contiguous. keys, values: [positions, num_kv_heads, dim], contiguous. out:
    [rows, num_heads, value_dim], contiguous. All float32 or all bfloat16; sums are float32.
    """
    decode_kernel(
        KINDS[q.dtype], q.data_ptr(), q.stride(0), keys.data_ptr(), values.data_ptr(), out.data_ptr(),
        *out.shape, *keys.shape, plan.block_size, plan.table, plan.pieces, plan.merges, plan.num_unfinished,
        float(scale), float(softcap or 0), window or NO_WINDOW, num_threads(plan.max_threads),
    )  # fmt: skip


@njit(fastmath=FAST, nogil=True)
def _score(queries: Array, keys: Array, group: int, row: int, scores: Array, t: int, count: int, ahead: int) -> None:
    """scores[:, t : t + count] = queries @ keys[row : row + count]; the rest of four are repeats.

    ahead: how many bytes from here lies what to ask memory for meanwhile.
    """
    dim, num_kv_heads = keys.shape[2], keys.shape[1]
    size, query_size, score_size = dim * keys.itemsize, dim * queries.itemsize, scores.strides[0]
    i1, i2, i3 = min(1, count - 1), min(2, count - 1), min(3, count - 1)
    row_size = num_kv_heads * size
    for kv_head in range(num_kv_heads):
        key = keys.ctypes.data + row * row_size + kv_head * size
        for head in range(kv_head * group, kv_head * group + group, MAX_HEADS):
            score_four(
                keys, queries.ctypes.data + head * query_size, min(MAX_HEADS, kv_head * group + group - head), dim,
                key, key + i1 * row_size, key + i2 * row_size, key + i3 * row_size,
                scores.ctypes.data + head * score_size + t * scores.itemsize, score_size, ahead,
            )  # fmt: skip
        for d in range(dim // LANES * LANES, dim):
            for head in range(kv_head * group, kv_head * group + group):
                for i in range(count):
                    scores[head, t + i] += queries[head, d] * to_float32(keys[row + i, kv_head, d])


@njit(fastmath=FAST, nogil=True)
def _add(sums: Array, values: Array, group: int, row: int, weights: Array, t: int, count: int, ahead: int) -> None:
    """sums += weights[:, t : t + count] @ values[row : row + count]. ahead: as for `_score`."""
    dim, num_kv_heads = values.shape[2], values.shape[1]
    size, sum_size, weight_size = dim * values.itemsize, dim * sums.itemsize, weights.strides[0]
    row_size = num_kv_heads * size
    done = dim // LANES * LANES if count == 4 else 0
    for kv_head in range(num_kv_heads):
        first, stop = kv_head * group, kv_head * group + group
        for head in range(first, stop if done > 0 else first, MAX_HEADS):
            add_four(
                values, sums.ctypes.data + head * sum_size, min(MAX_HEADS, stop - head), dim,
                values.ctypes.data + row * row_size + kv_head * size, row_size,
                weights.ctypes.data + head * weight_size + t * weights.itemsize, weight_size, ahead,
            )  # fmt: skip
        for head in range(first, stop if done < dim else first):
            for i in range(count):
                for d in range(done, dim):
                    sums[head, d] += weights[head, t + i] * to_float32(values[row + i, kv_head, d])


@njit(fastmath=True, nogil=True)
def highest_of(scores: Array) -> np.float32:
    """For kernels. NaN may be overlooked here: it shows in the weights."""
    highest = LOWEST
    for t in range(len(scores)):
        highest = max(highest, scores[t])
    return highest


@njit(fastmath=FAST, nogil=True)
def _weigh(scores: Array, count: int, softcap: np.float32, highest: Array, total: Array) -> None:
    """Turn scores into weights relative to the highest; keep that and the sum of the weights, for each head."""
    for head in range(len(scores)):
        if softcap > 0:
            for t in range(count):
                scores[head, t] = np.tanh(scores[head, t] / softcap) * softcap
        best, sum_of_weights = highest_of(scores[head, :count]), np.float32(0)
        for t in range(count):
            weight = exp(scores[head, t] - best)
            scores[head, t] = weight
            sum_of_weights += weight
        highest[head], total[head] = best, sum_of_weights


@njit(fastmath=FAST, nogil=True)
def _score_part(
    queries: Array, keys: Array, values: Array, blocks: Array, block_size: int, start: int, stop: int, scores: Array
) -> None:
    """scores[:, : stop - start] for the positions [start, stop)."""
    position, group = start, len(queries) // keys.shape[1]
    while position < stop:
        end = min((position // block_size + 1) * block_size, stop)
        row = blocks[position // block_size] * block_size + position % block_size - position
        # Blocks lie anywhere, and the processor cannot guess the next one. After the last keys come the first values.
        after = end if end < stop else start
        ahead = (blocks[after // block_size] * block_size + after % block_size - position - row) * keys.strides[0]
        if end == stop:
            ahead += values.ctypes.data - keys.ctypes.data
        while position < end:
            count = min(end - position, 4)
            _score(queries, keys, group, row + position, scores, position - start, count, ahead)
            position += count


@njit(fastmath=FAST, nogil=True)
def _add_part(
    sums: Array, values: Array, blocks: Array, block_size: int, start: int, stop: int, weights: Array
) -> None:
    """sums += weights[:, : stop - start] @ the values of the positions [start, stop)."""
    position, group = start, len(sums) // values.shape[1]
    while position < stop:
        end = min((position // block_size + 1) * block_size, stop)
        row = blocks[position // block_size] * block_size + position % block_size - position
        ahead = (blocks[end // block_size] * block_size - position - row) * values.strides[0] if end < stop else 0
        while position < end:
            count = min(end - position, 4)
            _add(sums, values, group, row + position, weights, position - start, count, ahead)
            position += count


@njit(fastmath=FAST, nogil=True)
def _finish(highest: Array, total: Array, sums: Array, first: int, stop: int, out: Array, row: int) -> None:
    """One row's result from the states [first, stop), in their order; they are changed."""
    for head in range(out.shape[1]):
        for i in range(first + 1, stop):
            best = max(highest[first, head], highest[i, head])
            old_share, share = exp(highest[first, head] - best), exp(highest[i, head] - best)
            highest[first, head] = best
            total[first, head] = total[first, head] * old_share + total[i, head] * share
            for d in range(out.shape[2]):
                sums[first, head, d] = sums[first, head, d] * old_share + sums[i, head, d] * share
        part = np.float32(1) / total[first, head]
        for d in range(out.shape[2]):
            out[row, head, d] = like(sums[first, head, d] * part, out[row, head, d])


@njit(fastmath=FAST, nogil=True)
def _run(
    piece: Array, state: int, q: Array, keys: Array, values: Array, table: Array, block_size: int,
    scale: np.float32, softcap: np.float32, window: int, queries: Array, scores: Array, highest: Array, total: Array,
    sums: Array,
) -> None:  # fmt: skip
    """One piece of the plan: its positions' highest score, sum of weights and weighted values into `state`."""
    blocks, stop = table[piece[0]], piece[3]
    start = max(piece[2], piece[4] - window)
    highest[state], total[state], sums[state] = LOWEST, 0, 0
    if start < stop:
        for head in range(queries.shape[0]):
            for d in range(queries.shape[1]):
                queries[head, d] = to_float32(q[piece[1], head * queries.shape[1] + d]) * scale
        _score_part(queries, keys, values, blocks, block_size, start, stop, scores)
        _weigh(scores, stop - start, softcap, highest[state], total[state])
        _add_part(sums[state], values, blocks, block_size, start, stop, scores)


@njit(nogil=True)
def _take_turns(
    thread: int, num_threads: int, q: Array, keys: Array, values: Array, out: Array, block_size: int, table: Array,
    pieces: Array, num_unfinished: int, scale: np.float32, softcap: np.float32, window: int, queries: Array,
    scores: Array, highest: Array, total: Array, sums: Array,
) -> None:  # fmt: skip
    """Every piece of one thread."""
    for turn in range(-(-len(pieces) // num_threads)):
        # To and fro, so that no thread always gets the longer one.
        i = turn * num_threads + (thread if turn % 2 == 0 else num_threads - 1 - thread)
        if i < len(pieces):
            piece = pieces[i]
            state = piece[5] if piece[5] >= 0 else num_unfinished + thread
            _run(
                piece, state, q, keys, values, table, block_size, scale, softcap, window, queries, scores, highest,
                total, sums,
            )  # fmt: skip
            if piece[5] < 0:
                _finish(highest, total, sums, state, state + 1, out, piece[1])


@njit(nogil=True, parallel=True, cache=True)
def decode_kernel(
    kind: Array, q_address: int, q_stride: int, keys_address: int, values_address: int, out_address: int,
    num_rows: int, num_heads: int, value_dim: int, num_positions: int, num_kv_heads: int, key_dim: int,
    block_size: int, table: Array, pieces: Array, merges: Array, num_unfinished: int,
    scale: float, softcap: float, window: int, num_threads: int,
) -> None:  # fmt: skip
    """kind: an empty array of the tensors' type, float32 or uint16 (bfloat16). softcap: 0 for none."""
    q = carray(pointer(q_address), (num_rows, q_stride), kind.dtype)
    keys = carray(pointer(keys_address), (num_positions, num_kv_heads, key_dim), kind.dtype)
    values = carray(pointer(values_address), (num_positions, num_kv_heads, value_dim), kind.dtype)
    out = carray(pointer(out_address), (num_rows, num_heads, value_dim), kind.dtype)
    highest = np.empty((num_unfinished + num_threads, num_heads), np.float32)
    total = np.empty((num_unfinished + num_threads, num_heads), np.float32)
    sums = np.empty((num_unfinished + num_threads, num_heads, value_dim), np.float32)
    factor, cap = np.float32(scale), np.float32(softcap)
    for thread in prange(num_threads):
        queries, scores = np.empty((num_heads, key_dim), np.float32), np.empty((num_heads, PART + 3), np.float32)
        _take_turns(
            np.int64(thread), num_threads, q, keys, values, out, block_size, table, pieces, num_unfinished, factor,
            cap, window, queries, scores, highest, total, sums,
        )  # fmt: skip
    for i in range(len(merges)):
        _finish(highest, total, sums, merges[i, 1], merges[i, 2], out, merges[i, 0])
