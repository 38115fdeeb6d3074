# mypy: disable-error-code="attr-defined, call-arg, import-untyped, untyped-decorator"
"""Attention of requests with one new token each, on the CPU, straight from the blocks of the KV cache.

The positions that a token sees are cut into parts of PART from position 0 on, so that threads can share one long
request. The parts, and the order within and among them, follow from the request alone: its batch-mates and the number
of threads change no bit. Source: flash decoding (https://pytorch.org/blog/flash-decoding).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numba import carray, njit, prange, types
from numba.extending import intrinsic
from torch import Tensor

from atoll.kernels.cpu.exp import exp
from atoll.kernels.cpu.fused import KINDS
from atoll.kernels.cpu.threads import num_threads
from atoll.kernels.cpu.values import CACHE_LINE, FAST, Array, like, pointer, prefetch, to_float32

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


@intrinsic
def _fetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of a C-contiguous array's element `index`, counted flat, before it is needed."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        prefetch(builder, builder.gep(data, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(array, index), generate


@njit(nogil=True)
def _fetch_rows(array: Array, row: int, count: int) -> None:
    size = array.shape[1] * array.shape[2]
    for place in range(row * size, (row + count) * size, CACHE_LINE // array.itemsize):
        _fetch(array, place)


@njit(fastmath=FAST, nogil=True)
def _score(queries: Array, thread: int, keys: Array, row: int, scores: Array, t: int, count: int) -> None:
    """scores[thread, :, t : t + count] = queries[thread] @ keys[row : row + count]; the rest of four are repeats."""
    group = queries.shape[1] // keys.shape[1]
    row1, row2, row3 = row + min(1, count - 1), row + min(2, count - 1), row + min(3, count - 1)
    for kv_head in range(keys.shape[1]):
        for head in range(kv_head * group, kv_head * group + group):
            s0 = s1 = s2 = s3 = np.float32(0)
            for d in range(keys.shape[2]):
                q = queries[thread, head, d]
                s0 += q * to_float32(keys[row, kv_head, d])
                s1 += q * to_float32(keys[row1, kv_head, d])
                s2 += q * to_float32(keys[row2, kv_head, d])
                s3 += q * to_float32(keys[row3, kv_head, d])
            scores[thread, head, t], scores[thread, head, t + 1] = s0, s1
            scores[thread, head, t + 2], scores[thread, head, t + 3] = s2, s3


@njit(fastmath=FAST, nogil=True)
def _add(sums: Array, state: int, values: Array, row: int, weights: Array, thread: int, t: int, count: int) -> None:
    """sums[state] += weights[thread, :, t : t + count] @ values[row : row + count]."""
    group, none = sums.shape[1] // values.shape[1], np.float32(0)
    row1, row2, row3 = row + min(1, count - 1), row + min(2, count - 1), row + min(3, count - 1)
    for kv_head in range(values.shape[1]):
        for head in range(kv_head * group, kv_head * group + group):
            w0 = weights[thread, head, t]
            w1 = weights[thread, head, t + 1] if count > 1 else none
            w2 = weights[thread, head, t + 2] if count > 2 else none
            w3 = weights[thread, head, t + 3] if count > 3 else none
            for d in range(values.shape[2]):
                near = w0 * to_float32(values[row, kv_head, d]) + w1 * to_float32(values[row1, kv_head, d])
                far = w2 * to_float32(values[row2, kv_head, d]) + w3 * to_float32(values[row3, kv_head, d])
                sums[state, head, d] += near + far


@njit(fastmath=True, nogil=True)
def highest_of(scores: Array) -> np.float32:
    """For kernels. NaN may be overlooked here: it shows in the weights."""
    highest = LOWEST
    for t in range(len(scores)):
        highest = max(highest, scores[t])
    return highest


@njit(fastmath=FAST, nogil=True)
def _weigh(
    scores: Array, thread: int, count: int, softcap: np.float32, highest: Array, total: Array, state: int
) -> None:
    """Turn scores into weights relative to the highest; keep that and the sum of the weights."""
    for head in range(scores.shape[1]):
        if softcap > 0:
            for t in range(count):
                scores[thread, head, t] = np.tanh(scores[thread, head, t] / softcap) * softcap
        best, sum_of_weights = highest_of(scores[thread, head, :count]), np.float32(0)
        for t in range(count):
            weight = exp(scores[thread, head, t] - best)
            scores[thread, head, t] = weight
            sum_of_weights += weight
        highest[state, head], total[state, head] = best, sum_of_weights


@njit(fastmath=FAST, nogil=True)
def _score_part(
    queries: Array, thread: int, keys: Array, values: Array, blocks: Array, block_size: int, start: int, stop: int,
    scores: Array,
) -> None:  # fmt: skip
    """scores[thread, :, : stop - start] for the positions [start, stop)."""
    position = start
    while position < stop:
        end = min((position // block_size + 1) * block_size, stop)
        row = blocks[position // block_size] * block_size + position % block_size - position
        # Blocks lie anywhere, and the processor cannot guess the next one. After the last keys come the first values.
        after = end if end < stop else start
        ahead = blocks[after // block_size] * block_size + after % block_size - position
        while position < end:
            count = min(end - position, 4)
            _fetch_rows(keys if end < stop else values, ahead + position, count)
            _score(queries, thread, keys, row + position, scores, position - start, count)
            position += count


@njit(fastmath=FAST, nogil=True)
def _add_part(
    sums: Array, state: int, values: Array, blocks: Array, block_size: int, start: int, stop: int, weights: Array,
    thread: int,
) -> None:  # fmt: skip
    """sums[state] += weights[thread, :, : stop - start] @ the values of the positions [start, stop)."""
    position = start
    while position < stop:
        end = min((position // block_size + 1) * block_size, stop)
        row = blocks[position // block_size] * block_size + position % block_size - position
        ahead = blocks[end // block_size] * block_size - position if end < stop else row
        while position < end:
            count = min(end - position, 4)
            _fetch_rows(values, ahead + position, count)
            _add(sums, state, values, row + position, weights, thread, position - start, count)
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
    piece: Array, thread: int, state: int, q: Array, keys: Array, values: Array, table: Array, block_size: int,
    scale: np.float32, softcap: np.float32, window: int, queries: Array, scores: Array, highest: Array, total: Array,
    sums: Array,
) -> None:  # fmt: skip
    """One piece of the plan: its positions' highest score, sum of weights and weighted values into `state`."""
    blocks, stop = table[piece[0]], piece[3]
    start = max(piece[2], piece[4] - window)
    highest[state], total[state], sums[state] = LOWEST, 0, 0
    if start < stop:
        for head in range(queries.shape[1]):
            for d in range(queries.shape[2]):
                queries[thread, head, d] = to_float32(q[piece[1], head * queries.shape[2] + d]) * scale
        _score_part(queries, thread, keys, values, blocks, block_size, start, stop, scores)
        _weigh(scores, thread, stop - start, softcap, highest, total, state)
        _add_part(sums, state, values, blocks, block_size, start, stop, scores, thread)


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
                piece, thread, state, q, keys, values, table, block_size, scale, softcap, window, queries, scores,
                highest, total, sums,
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
    queries = np.empty((num_threads, num_heads, key_dim), np.float32)
    scores = np.empty((num_threads, num_heads, PART + 3), np.float32)
    highest = np.empty((num_unfinished + num_threads, num_heads), np.float32)
    total = np.empty((num_unfinished + num_threads, num_heads), np.float32)
    sums = np.empty((num_unfinished + num_threads, num_heads, value_dim), np.float32)
    factor, cap = np.float32(scale), np.float32(softcap)
    for thread in prange(num_threads):
        _take_turns(
            np.int64(thread), num_threads, q, keys, values, out, block_size, table, pieces, num_unfinished, factor,
            cap, window, queries, scores, highest, total, sums,
        )  # fmt: skip
    for i in range(len(merges)):
        _finish(highest, total, sums, merges[i, 1], merges[i, 2], out, merges[i, 0])
