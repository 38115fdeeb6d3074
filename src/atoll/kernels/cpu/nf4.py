"""Products with 4-bit weights on the CPU: codes of 16 values, with a scale for each block of a row.

A few rows are bound by reading the weights, of which there are eight times fewer bytes than in float32: each output
channel is widened into the nearest cache and multiplied there. With many rows all are widened first and the product is
oneDNN's, or PyTorch's where oneDNN does not multiply the dtype (bfloat16 without AVX-512). Either way the weights are
those that bitsandbytes dequantises to. Source: QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, prange, types
from numba.extending import intrinsic
from torch import Tensor
from torch.nn.functional import linear

from atoll.kernels.cpu.linear import has_product, product
from atoll.kernels.cpu.threads import num_threads
from atoll.kernels.cpu.values import FAST, Array, as_numpy, like, to_float32

_FEW_ROWS = 8
_CHANNELS = 4  # widened at a time, multiplied together
_CODE_BYTES = 16  # widened by one instruction sequence: 32 weights


class FourBitLinear:
    """A linear layer of 4-bit codes, two in a byte, the first in its upper half."""

    def __init__(self, codes: Tensor, scales: Tensor, table: Tensor, bias: Tensor | None) -> None:
        """codes: [out_features, in_features / 2] uint8. scales: [out_features, blocks], float32; a block is a multiple
        of 32 weights. table: [16] float32; weight = table[code] * scale of its block.
        """
        self.out_features, self.in_features = codes.shape[0], 2 * codes.shape[1]
        self._bias = None if bias is None else bias.detach()
        offsets = torch.zeros(self.out_features) if bias is None else bias.detach().float()
        self._offsets = as_numpy(offsets.contiguous())
        self._arrays = as_numpy(codes.contiguous()), as_numpy(scales.contiguous()), as_numpy(table.float().contiguous())
        self.num_bytes = codes.numel() + 4 * scales.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """x: [tokens, in_features] float32 or bfloat16. Returns [tokens, out_features] in the same dtype."""
        if len(x) <= _FEW_ROWS:
            y = x.new_empty(len(x), self.out_features)
            _multiply(as_numpy(x.contiguous()), *self._arrays, self._offsets, as_numpy(y), num_threads())
            return y
        weight = x.new_empty(self.out_features, self.in_features)
        _widen(*self._arrays, as_numpy(weight), num_threads())
        bias = None if self._bias is None else self._bias.to(x.dtype)
        return (product if has_product(x.dtype) else linear)(x, weight, bias)


@intrinsic
def _look_up(typing_context: Any, codes: Any, table: Any, scale: Any, out: Any) -> Any:
    """Write the 32 float32 weights of 16 bytes of codes: table[codes[i] >> 4] * scale, table[codes[i] & 15] * scale.

    All but scale are addresses. numba would look values up one by one; LLVM knows this form as one permutation of a
    register, where the processor has such an instruction.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        integers, floats = ir.VectorType(ir.IntType(32), 16), ir.VectorType(ir.FloatType(), 16)

        def at(address: ir.Value, kind: ir.Type) -> ir.Value:
            return builder.inttoptr(address, ir.PointerType(kind))

        def looked_up(indices: ir.Value) -> ir.Value:
            values = ir.Constant(floats, ir.Undefined)
            for lane in range(16):
                position = ir.Constant(ir.IntType(32), lane)
                value = builder.extract_element(table_values, builder.extract_element(indices, position))
                values = builder.insert_element(values, value, position)
            return builder.fmul(values, scales)

        first = builder.insert_element(ir.Constant(floats, ir.Undefined), arguments[2], ir.Constant(ir.IntType(32), 0))
        scales = builder.shuffle_vector(first, first, ir.Constant(integers, [0] * 16))
        table_values = builder.load(at(arguments[1], floats), align=4)
        raw = builder.load(at(arguments[0], ir.VectorType(ir.IntType(8), 16)), align=1)
        wide = builder.zext(raw, integers)
        upper = looked_up(builder.lshr(wide, ir.Constant(integers, [4] * 16)))
        lower = looked_up(builder.and_(wide, ir.Constant(integers, [15] * 16)))
        order = [lane // 2 + 16 * (lane % 2) for lane in range(32)]
        both = builder.shuffle_vector(upper, lower, ir.Constant(ir.VectorType(ir.IntType(32), 32), order))
        builder.store(both, at(arguments[3], both.type), align=4)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.float32, types.int64), generate


@njit(fastmath=FAST, nogil=True)
def _widen_row(codes: Array, scales: Array, table: Array, out: Array) -> None:
    """out [in_features] float32 = the weights of one output channel."""
    source, target = codes.ctypes.data, out.ctypes.data
    block_bytes = len(codes) // len(scales)
    for block in range(len(scales)):
        for start in range(block * block_bytes, (block + 1) * block_bytes, _CODE_BYTES):
            _look_up(source + start, table.ctypes.data, scales[block], target + 8 * start)  # type: ignore[call-arg]


@njit(fastmath=FAST, nogil=True, parallel=True, cache=True)
def _widen(codes: Array, scales: Array, table: Array, weight: Array, num_threads: int) -> None:
    """weight: [out_features, in_features] float32 or uint16 (bfloat16)."""
    for thread in prange(num_threads):
        values = np.empty(weight.shape[1], np.float32)
        for o in range(thread * len(codes) // num_threads, (thread + 1) * len(codes) // num_threads):
            _widen_row(codes[o], scales[o], table, values)
            row = weight[o]
            for k in range(len(row)):
                row[k] = like(values[k], row[k])


@njit(fastmath=FAST, nogil=True)
def _dot4(x: Array, w0: Array, w1: Array, w2: Array, w3: Array) -> tuple[np.float32, ...]:
    sum0 = sum1 = sum2 = sum3 = np.float32(0)
    for k in range(len(x)):
        value = to_float32(x[k])
        sum0 += value * w0[k]
        sum1 += value * w1[k]
        sum2 += value * w2[k]
        sum3 += value * w3[k]
    return sum0, sum1, sum2, sum3


@njit(fastmath=FAST, nogil=True, parallel=True, cache=True)
def _multiply(x: Array, codes: Array, scales: Array, table: Array, bias: Array, y: Array, num_threads: int) -> None:
    """x: [tokens, in_features], y: [tokens, out_features], both float32 or uint16 (bfloat16)."""
    last = len(codes) - 1
    num_groups = last // _CHANNELS + 1
    for thread in prange(num_threads):
        values = np.empty((_CHANNELS, x.shape[1]), np.float32)
        for group in range(thread * num_groups // num_threads, (thread + 1) * num_groups // num_threads):
            first = group * _CHANNELS
            for i in range(_CHANNELS):
                o = min(first + i, last)
                _widen_row(codes[o], scales[o], table, values[i])
            for row in range(len(x)):
                sums = _dot4(x[row], values[0], values[1], values[2], values[3])
                for i, total in enumerate(sums):
                    o = min(first + i, last)
                    y[row, o] = like(total + bias[o], y[row, o])
