"""The LoRA products of modules that share an input, on the CPU, straight from the memory of each slot.

Reading the weights is what costs: with one row an adapter they come from memory once and are used once. Rows of a slot
are therefore taken in blocks, and a row's own sums stay in the nearest cache. With many rows it is `y` that costs: it
is read and written once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import carray, njit, prange  # type: ignore[attr-defined]
from torch import Tensor

from atoll.kernels.cpu.threads import num_threads
from atoll.kernels.cpu.values import FAST, Array, as_numpy, begin_sum, end_sum, pointer, running_sum, to_float32

if TYPE_CHECKING:
    from atoll.kernels.lora import LoraTable

_ROW_BLOCK = 8
_RANK_BLOCK = 8


def add_group(x: Tensor, y: Tensor, segments: Array, table: LoraTable) -> None:
    """Add every module's LoRA product to its columns of `y`, in place, as `kernels.lora.add_lora_group` says.

    segments: [n, 3] int64 (slot, start, stop), slot -1 for none.
    """
    add_group_kernel(
        as_numpy(x.contiguous()), as_numpy(y), segments, table.addresses, table.ranks, table.scalings, table.columns,
        table.kind, num_threads(),
    )  # fmt: skip


@njit(fastmath=FAST, nogil=True)
def _shrink(x: Array, start: int, stop: int, a: Array, scaling: np.float32, hidden: Array) -> None:
    """hidden [rows, rank] = scaling * x[start:stop] @ a.T."""
    rank, in_features = a.shape
    for r in range(rank):
        weights = a[r]
        row = start
        while row + 4 <= stop:
            x0, x1, x2, x3 = x[row], x[row + 1], x[row + 2], x[row + 3]
            sum0 = sum1 = sum2 = sum3 = np.float32(0)
            for k in range(in_features):
                weight = to_float32(weights[k])
                sum0 += weight * to_float32(x0[k])
                sum1 += weight * to_float32(x1[k])
                sum2 += weight * to_float32(x2[k])
                sum3 += weight * to_float32(x3[k])
            hidden[row - start, r] = scaling * sum0
            hidden[row - start + 1, r] = scaling * sum1
            hidden[row - start + 2, r] = scaling * sum2
            hidden[row - start + 3, r] = scaling * sum3
            row += 4
        while row < stop:
            x0 = x[row]
            sum0 = np.float32(0)
            for k in range(in_features):
                sum0 += to_float32(weights[k]) * to_float32(x0[k])
            hidden[row - start, r] = scaling * sum0
            row += 1


@njit(fastmath=FAST, nogil=True)
def _expand(hidden: Array, b: Array, y: Array, start: int, stop: int, first: int, scratch: Array) -> None:
    """y[start:stop, first : first + out_features] += hidden @ b, rounded to the type of `y` once.

    hidden: [rows, >= rank], zeros in the _RANK_BLOCK - 1 columns beyond the rank. scratch: [rows, out_features].
    """
    # Slices of one row keep their elements side by side in numba's eyes; slices of several do not.
    last, end = b.shape[0] - 1, first + b.shape[1]
    for row in range(stop - start):
        begin_sum(y[start + row, first:end], scratch[row])
    for r in range(0, last + 1, _RANK_BLOCK):
        b0, b1, b2, b3 = b[r], b[min(r + 1, last)], b[min(r + 2, last)], b[min(r + 3, last)]
        b4, b5, b6, b7 = b[min(r + 4, last)], b[min(r + 5, last)], b[min(r + 6, last)], b[min(r + 7, last)]
        for row in range(stop - start):
            total, h = running_sum(y[start + row, first:end], scratch[row]), hidden[row]
            h0, h1, h2, h3 = h[r], h[r + 1], h[r + 2], h[r + 3]
            h4, h5, h6, h7 = h[r + 4], h[r + 5], h[r + 6], h[r + 7]
            for k in range(b.shape[1]):
                near = h0 * to_float32(b0[k]) + h1 * to_float32(b1[k])
                near += h2 * to_float32(b2[k]) + h3 * to_float32(b3[k])
                far = h4 * to_float32(b4[k]) + h5 * to_float32(b5[k])
                far += h6 * to_float32(b6[k]) + h7 * to_float32(b7[k])
                total[k] += near + far
    for row in range(stop - start):
        end_sum(y[start + row, first:end], scratch[row])


@njit(nogil=True)
def _cost(segment: Array, module: int, ranks: Array, in_features: int, columns: Array) -> Any:
    """About how long one segment takes with one module; 0 where there is nothing to do."""
    slot, start, stop = segment
    if slot < 0:
        return 0
    size = ranks[slot, module] * (in_features + columns[module + 1] - columns[module])
    # Reading a weight from memory takes as long as about four rows' arithmetic with it.
    return size * (stop - start + 4)


@njit(fastmath=FAST, nogil=True, parallel=True, cache=True)
def add_group_kernel(
    x: Array,
    y: Array,
    segments: Array,
    addresses: Array,
    ranks: Array,
    scalings: Array,
    columns: Array,
    kind: Array,
    num_threads: int,
) -> None:
    """x: [tokens, in_features]; y: [tokens, out_features]; both float32 or uint16 (bfloat16), C-contiguous. segments:
    [n, 3] int64 (slot, start, stop), slot -1 for none. addresses: [num_slots, modules, 2] int64, of a [rank,
    in_features] and of b.T [rank, out of the module]. ranks: [num_slots, modules] int32, 0 where a slot leaves a module
    alone. scalings: the same in float32. columns: [modules + 1] int64, where each module's columns begin. kind: an
    empty array of the weights' type, float32 or uint16.
    """
    in_features = x.shape[1]
    total = 0
    for i in range(len(segments)):
        for module in range(ranks.shape[1]):
            total += _cost(segments[i], module, ranks, in_features, columns)
    scratch_width = 0 if y.itemsize == 4 else y.shape[1]
    for thread in prange(num_threads):
        hidden = np.empty((_ROW_BLOCK, ranks.max() + _RANK_BLOCK), np.float32)
        scratch = np.empty((_ROW_BLOCK, scratch_width), np.float32)
        before = 0
        for i in range(len(segments)):
            slot, start, stop = segments[i]
            for module in range(ranks.shape[1]):
                cost = _cost(segments[i], module, ranks, in_features, columns)
                if cost == 0:
                    continue
                rank, first = ranks[slot, module], columns[module]
                a_at: int = pointer(addresses[slot, module, 0])  # type: ignore[call-arg]
                b_at: int = pointer(addresses[slot, module, 1])
                a = carray(a_at, (rank, in_features), kind.dtype)
                b = carray(b_at, (rank, columns[module + 1] - first), kind.dtype)
                for row in range(start, stop, _ROW_BLOCK):
                    # Each thread does its share of the whole cost, in order.
                    if (before + cost * (row - start) // (stop - start)) * num_threads // total == thread:
                        end = min(row + _ROW_BLOCK, stop)
                        hidden[:, rank : rank + _RANK_BLOCK] = 0
                        _shrink(x, row, end, a, scalings[slot, module], hidden)
                        _expand(hidden, b, y, row, end, first, scratch)
                before += cost
