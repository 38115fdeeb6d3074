# mypy: disable-error-code="attr-defined, call-arg, no-untyped-call, untyped-decorator"
"""Products of a few rows with weights that oneDNN has packed, at the speed at which memory gives the weights.

With few rows, reading the weights is what costs, and with AVX-512 oneDNN reads them at half of what memory can give.
The kernels here read the same bytes in the order in which they lie: blocks of 64 output channels, and in a block for
each step along the input 4 bytes of each channel. They add in oneDNN's order, so that a row has the same bits alone and
among many. With more rows the arithmetic costs as much, and goes on while the next block comes from memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import carray, njit, prange, types
from numba.extending import intrinsic
from torch import Tensor

from atoll.kernels.cpu.fused import KINDS
from atoll.kernels.cpu.threads import num_threads
from atoll.kernels.cpu.values import CACHE_LINE, FEATURES, INDEX, Array, emit_loop, like, pointer, prefetch, spread

CHANNELS = 64
"""Output channels of a block."""
_LANES = 16
_STEP_BYTES = 4 * CHANNELS

# What the processor that numba compiles for must have, in LLVM's names.
_NEEDED = {torch.float32: "+avx512f", torch.bfloat16: "+avx512bf16", torch.int8: "+avx512vnni"}
TILE_ROWS = 6
"""Rows whose sums have room in the registers."""
FEW_ROWS = 48
"""Up to so many rows the kernels here are the faster ones (measured, see docs/LOG.md)."""


class Blocks(NamedTuple):
    """Where a packed weight's blocks begin, and how far apart they are. `packed` holds the memory."""

    packed: Tensor
    address: int
    bytes_per_block: int


def find_blocks(packed: Tensor, weight: Tensor) -> Blocks | None:
    """The blocks of a packed weight, or None where the processor or the layout is not one that the kernels know.

    weight: what was packed, [out_features, in_features], float32, bfloat16 or int8.
    """
    out_features, in_features = weight.shape
    per_step = 4 // weight.itemsize
    if _NEEDED[weight.dtype] not in FEATURES or in_features % per_step:
        return None
    num_blocks = -(-out_features // CHANNELS)
    num_bytes: int = torch.ops.mkldnn._nbytes(packed)
    if weight.dtype is torch.int8:
        num_bytes -= num_blocks * _STEP_BYTES  # oneDNN keeps a number for each channel behind the blocks
    blocks = Blocks(packed, torch.ops.mkldnn.data_ptr(packed), num_bytes // num_blocks)
    if blocks.bytes_per_block < in_features * CHANNELS * weight.itemsize or blocks.bytes_per_block % _STEP_BYTES:
        return None
    # The layout is oneDNN's own affair: what lies there must be what was packed.
    for block in {0, num_blocks - 1}:
        memory = (ctypes.c_uint8 * blocks.bytes_per_block).from_address(blocks.address + block * blocks.bytes_per_block)
        steps = torch.frombuffer(memory, dtype=weight.dtype).view(-1, CHANNELS, per_step)
        expected = weight[block * CHANNELS : (block + 1) * CHANNELS]
        if not torch.equal(steps.transpose(0, 1).flatten(1)[: len(expected), :in_features], expected):
            return None
    return blocks


def multiply(x: Tensor, blocks: Blocks, bias: Array) -> Tensor:
    """x @ weight.T + bias. x: [tokens, in_features], of the weight's dtype. bias: [out_features], float32."""
    x, y = x.contiguous(), x.new_empty(len(x), len(bias))
    multiply_kernel(
        KINDS[x.dtype], x.data_ptr(), *x.shape, chunk_of(x.shape[1]), blocks.address, blocks.bytes_per_block,
        bias, y.data_ptr(), num_threads(-(-len(bias) // CHANNELS)),
    )  # fmt: skip
    return y


def chunk_of(in_features: int) -> int:
    """So many products oneDNN adds up by themselves, unless there is one row only."""
    return 512 if in_features <= 1024 else 1024


@intrinsic
def _dot_rows(
    typing_context: Any, kind: Any, weights: Any, rows: Any, row_bytes: Any, num_rows: Any, num_steps: Any, sums: Any,
    ahead: Any,
) -> Any:  # fmt: skip
    """`dot_tile` of up to `TILE_ROWS` rows. numba has no vectors: its own loops would keep the sums in memory."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        _, weights, rows, row_bytes, num_rows, num_steps, sums, ahead = arguments
        done = builder.append_basic_block()
        cases = builder.switch(num_rows, done)
        for count in range(1, TILE_ROWS + 1):
            case = builder.append_basic_block()
            cases.add_case(count, case)
            builder.position_at_end(case)
            starts = [builder.add(rows, builder.mul(row_bytes, ir.Constant(INDEX, row))) for row in range(count)]
            # Where there are fewer rows, nothing is done meanwhile: memory is read in the order in which it lies.
            _emit_steps(builder, kind.dtype, weights, starts, num_steps, sums, ahead if count > 3 else None)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.none(kind, *[types.int64] * 7), generate


_LANE = ir.IntType(32)


def _emit_steps(
    builder: ir.IRBuilder, kind: Any, weights: ir.Value, rows: list[ir.Value], num_steps: ir.Value, sums: ir.Value,
    ahead: ir.Value | None,
) -> None:  # fmt: skip
    """A loop over the steps, of which each loads the channels' weights once and four bytes of each row."""
    number = ir.FloatType() if kind == types.float32 else _LANE
    numbers = ir.VectorType(number, _LANES)
    totals_type = ir.VectorType(_LANE if kind == types.uint8 else ir.FloatType(), _LANES)

    def at(address: ir.Value, offset: ir.Value, what: ir.Type) -> ir.Value:
        return builder.inttoptr(builder.add(address, offset), ir.PointerType(what))

    def emit_step(step: ir.Value, totals: Sequence[ir.Value]) -> list[ir.Value]:
        offset = builder.mul(step, ir.Constant(INDEX, _STEP_BYTES))
        loaded = [
            builder.load(at(weights, builder.add(offset, ir.Constant(INDEX, first)), numbers), align=4)
            for first in range(0, _STEP_BYTES, 4 * _LANES)
        ]
        if ahead is not None:
            prefetch(builder, at(ahead, builder.mul(step, ir.Constant(INDEX, CACHE_LINE)), ir.IntType(8)))
        grown = []
        for number_of_row, row in enumerate(rows):
            value = builder.load(at(row, builder.mul(step, ir.Constant(INDEX, 4)), number), align=4)
            values = spread(builder, value, _LANES)
            own = totals[number_of_row * len(loaded) : (number_of_row + 1) * len(loaded)]
            pairs = zip(own, loaded, strict=True)
            grown += [_emit_multiply_add(builder, kind, total, values, weights) for total, weights in pairs]
        return grown

    zeros = [ir.Constant(totals_type, None)] * (len(rows) * CHANNELS // _LANES)
    grown = emit_loop(builder, num_steps, 1, zeros, emit_step)
    for place, sum_after in enumerate(grown):
        builder.store(sum_after, at(sums, ir.Constant(INDEX, 4 * _LANES * place), totals_type), align=4)


def _emit_multiply_add(
    builder: ir.IRBuilder, kind: Any, total: ir.Value, values: ir.Value, weights: ir.Value
) -> ir.Value:
    """total + values * weights in each lane: of one float32, of two bfloat16 or of four 8-bit integers."""
    name, arguments = {
        types.float32: ("llvm.fma.v16f32", (values, weights, total)),
        types.uint16: ("llvm.x86.avx512bf16.dpbf16ps.512", (total, values, weights)),
        types.uint8: ("llvm.x86.avx512.vpdpbusd.512", (total, values, weights)),
    }[kind]
    function = builder.module.globals.get(name)
    if function is None:
        kind_of_call = ir.FunctionType(total.type, [argument.type for argument in arguments])
        function = ir.Function(builder.module, kind_of_call, name)
    return builder.call(function, arguments)


@njit(nogil=True)
def num_tiles(num_rows: int) -> int:
    """In how many tiles so many rows are multiplied with a block; for kernels."""
    return (num_rows + TILE_ROWS - 1) // TILE_ROWS


@njit(nogil=True)
def tile_bounds(tile: int, num_rows: int) -> tuple[int, int]:
    """The first row of a tile and the one after its last; for kernels."""
    count = num_tiles(num_rows)
    return tile * num_rows // count, (tile + 1) * num_rows // count


@njit(nogil=True)
def dot_tile(
    kind: Array, weights: int, bytes_per_block: int, rows: int, row_bytes: int, num_rows: int, num_steps: int,
    tile: int, sums: Array,
) -> None:  # fmt: skip
    """sums [num_rows, 64] = the products of one tile's rows with the channels of one block; for kernels.

    kind: an array of the rows' type: float32 or uint16 (bfloat16), with sums of float32, or uint8, with sums of int32.
    weights, rows: addresses of the first step; one row is `row_bytes` from the next, a step is 4 bytes of a row.
    """
    # Meanwhile the next block is asked for: by a line in each step, a quarter of it in each of the first four tiles.
    quarter = min(tile, _STEP_BYTES // CACHE_LINE - 1)
    ahead = weights + bytes_per_block + quarter * CACHE_LINE * num_steps
    _dot_rows(kind, weights, rows, row_bytes, num_rows, num_steps, sums.ctypes.data, ahead)


@njit(nogil=True, parallel=True, cache=True)
def multiply_kernel(
    kind: Array, rows: int, num_rows: int, in_features: int, chunk: int, weights: int, bytes_per_block: int,
    bias: Array, y_address: int, num_threads: int,
) -> None:  # fmt: skip
    y = carray(pointer(y_address), (num_rows, len(bias)), kind.dtype)
    row_bytes, chunk_bytes, tiles = in_features * y.itemsize, chunk * y.itemsize, num_tiles(num_rows)
    work = (len(bias) + CHANNELS - 1) // CHANNELS * tiles
    for thread in prange(num_threads):
        sums, totals = np.empty((TILE_ROWS, CHANNELS), np.float32), np.empty((TILE_ROWS, CHANNELS), np.float32)
        for turn in range(thread * work // num_threads, (thread + 1) * work // num_threads):
            block, tile = turn // tiles, turn % tiles
            first_row, stop_row = tile_bounds(tile, num_rows)
            totals[:] = 0
            for start in range(0, row_bytes, chunk_bytes):
                dot_tile(
                    kind, weights + block * bytes_per_block + start * CHANNELS, bytes_per_block,
                    rows + first_row * row_bytes + start, row_bytes, stop_row - first_row,
                    min(chunk_bytes, row_bytes - start) // 4, tile, sums,
                )  # fmt: skip
                totals += sums
            first = block * CHANNELS
            for row in range(first_row, stop_row):
                for channel in range(first, min(first + CHANNELS, len(bias))):
                    y[row, channel] = like(totals[row - first_row, channel - first] + bias[channel], y[row, channel])
