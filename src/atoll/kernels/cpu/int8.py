# mypy: disable-error-code="attr-defined, call-arg, untyped-decorator"
"""Products of 8-bit integers on the CPU: quantised rows times quantised output channels, exact until they are scaled.

A row is scaled by its own largest value alone, so that it never depends on its batch-mates. A few rows are bound by
reading the weights, which `gemv` does at the speed of the memory; many are oneDNN's. Both add the same integers and
scale them by the same factors in the same order: which of them computed a row does not show.
Source: LLM.int8(), arXiv 2208.07339, without its outliers, as bitsandbytes computes it: inputs are rounded to float16
before they are quantised, so that a served row has the same integers as a trained one.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import carray, njit, prange
from torch import Tensor

from atoll.kernels.cpu import gemv
from atoll.kernels.cpu.fused import KINDS
from atoll.kernels.cpu.linear import padded
from atoll.kernels.cpu.threads import num_threads
from atoll.kernels.cpu.values import Array, as_numpy, like, pointer, to_float32

_ROWS_FOR_THREADS = 8  # for which it pays to wake another thread
_ZERO_POINT = 128  # oneDNN multiplies int8 weights with uint8 inputs
_LARGEST = np.float32(127)
_MAGNITUDE, _INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)


class Int8Linear:
    """A linear layer with a scale for each output channel.

    blocks: where the packed codes lie for `gemv`, or None. excess: [out_features] int32, what its zero point adds.
    """

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        """codes: [out_features, in_features] int8. scales: [out_features] float32; weight = codes * scales[:, None]."""
        self.out_features, self.in_features = codes.shape
        self.num_bytes = codes.numel() + 4 * self.out_features
        self._scales = scales.float().contiguous()
        self._bias = torch.zeros(self.out_features) if bias is None else bias.detach().float().contiguous()
        self.scales, self.bias = as_numpy(self._scales), as_numpy(self._bias)
        self.blocks: gemv.Blocks | None = None
        # Without VNNI oneDNN adds in 16 bits, which saturates.
        if torch.cpu._is_vnni_supported():
            codes = codes.contiguous()
            self._packed = torch.ops.onednn.qlinear_prepack(codes, None)
            self.blocks = gemv.find_blocks(self._packed, codes)
            self._zero_points = torch.zeros(self.out_features, dtype=torch.int64)
            self.excess = as_numpy(_ZERO_POINT * codes.sum(dim=1, dtype=torch.int32))
        else:
            self._codes = as_numpy(codes.contiguous())
            self._packed = None

    def __call__(self, x: Tensor) -> Tensor:
        """x: [tokens, in_features] float32 or bfloat16. Returns [tokens, out_features] in the same dtype."""
        x = x.contiguous()
        if self._packed is None:
            y = x.new_empty(len(x), self.out_features)
            _multiply(as_numpy(x), self._codes, self.scales, self.bias, as_numpy(y), num_threads())
            return y
        if self.blocks is not None and len(x) <= gemv.FEW_ROWS:
            y = x.new_empty(len(x), self.out_features)
            multiply_blocks_kernel(
                KINDS[x.dtype], x.data_ptr(), *x.shape, self.blocks.address, self.blocks.bytes_per_block,
                self.excess, self.scales, self.bias, y.data_ptr(), num_threads(),
            )  # fmt: skip
            return y
        codes = torch.empty(padded(len(x)), self.in_features, dtype=torch.uint8)
        row_scales = torch.empty(len(x), 1)
        _quantise_rows(as_numpy(x), as_numpy(codes[: len(x)]), as_numpy(row_scales), num_threads())
        products: Tensor = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, _ZERO_POINT, self._packed, self._scales, self._zero_points, None, 1.0, 0, torch.float32,
            "none", [], "",
        )[: len(x)]  # fmt: skip
        return products.mul_(row_scales).add_(self._bias).to(x.dtype)


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes [out_features, in_features] and float32 scales [out_features] of a dense weight."""
    rounded = weight.half().float()
    largest = rounded.abs().amax(dim=1)
    steps = torch.where(largest > 0, 127 / largest, 0)
    return (rounded * steps[:, None]).round().to(torch.int8), largest / 127


@njit(nogil=True)
def _as_float16(bits: np.uint32) -> np.float32:
    """The bits of a float32, rounded to float16's ten bits of mantissa; it keeps its own range."""
    odd = np.uint32(np.uint32(bits >> np.uint32(13)) & np.uint32(1))
    return np.uint32(np.uint32(bits + np.uint32(odd + np.uint32(0xFFF))) & np.uint32(0xFFFFE000)).view(np.float32)


@njit(nogil=True)
def _quantise(row: Array, zero_point: int, codes: Array) -> np.float32:
    """Fill codes with row / scale + zero_point, rounded to the nearest even, and return the scale.

    The scale is not finite where the row is not.
    """
    # As integers, magnitudes keep their order, and NaN is the largest.
    bits = np.uint32(0)
    for k in range(len(row)):
        bits = max(bits, np.uint32(np.float32(to_float32(row[k])).view(np.uint32) & _MAGNITUDE))
    if bits >= _INFINITY:
        codes[:] = zero_point
        return np.float32(np.nan)
    largest = _as_float16(bits)
    # In this order, as PyTorch divides a number by a tensor: a value between two integers goes the same way.
    step = np.float32(1) / largest * _LARGEST if largest > 0 else np.float32(0)
    for k in range(len(row)):
        value = _as_float16(np.float32(to_float32(row[k])).view(np.uint32))
        codes[k] = np.int32(np.rint(value * step)) + np.int32(zero_point)
    return largest / _LARGEST


@njit(nogil=True, parallel=True, cache=True)
def _quantise_rows(x: Array, codes: Array, row_scales: Array, num_threads: int) -> None:
    """x: [tokens, in_features] float32 or uint16 (bfloat16). codes: the same, uint8. row_scales: [tokens, 1]."""
    for thread in prange(num_threads):
        for row in range(thread * len(x) // num_threads, (thread + 1) * len(x) // num_threads):
            row_scales[row, 0] = _quantise(x[row], _ZERO_POINT, codes[row])


@njit(nogil=True)
def _dot4(w0: Array, w1: Array, w2: Array, w3: Array, x: Array) -> tuple[np.int32, ...]:
    """Four products at once, so that the input is widened and loaded once."""
    sum0 = sum1 = sum2 = sum3 = np.int32(0)
    for k in range(len(x)):
        value = np.int32(x[k])
        sum0 = np.int32(sum0 + np.int32(np.int32(w0[k]) * value))
        sum1 = np.int32(sum1 + np.int32(np.int32(w1[k]) * value))
        sum2 = np.int32(sum2 + np.int32(np.int32(w2[k]) * value))
        sum3 = np.int32(sum3 + np.int32(np.int32(w3[k]) * value))
    return sum0, sum1, sum2, sum3


@njit(nogil=True, parallel=True, cache=True)
def _multiply(x: Array, weight: Array, scales: Array, bias: Array, y: Array, num_threads: int) -> None:
    """Without VNNI. x: [tokens, in_features], y: [tokens, out_features], both float32 or uint16. weight: int8."""
    codes = np.empty(x.shape, np.int16)
    row_scales = np.empty(len(x), np.float32)
    for row in range(len(x)):
        row_scales[row] = _quantise(x[row], 0, codes[row])
    last = len(weight) - 1
    num_blocks = last // 4 + 1
    for thread in prange(num_threads):
        for block in range(thread * num_blocks // num_threads, (thread + 1) * num_blocks // num_threads):
            o0 = 4 * block
            o1, o2, o3 = min(o0 + 1, last), min(o0 + 2, last), min(o0 + 3, last)
            for row in range(len(x)):
                sums = _dot4(weight[o0], weight[o1], weight[o2], weight[o3], codes[row])
                for o, total in zip((o0, o1, o2, o3), sums):  # noqa: B905 - numba's zip is never strict
                    value = np.float32(total) * scales[o] * row_scales[row] + bias[o]
                    y[row, o] = like(value, y[row, o])


@njit(nogil=True, parallel=True, cache=True)
def multiply_blocks_kernel(
    kind: Array, x_address: int, num_rows: int, in_features: int, weights: int, bytes_per_block: int, excess: Array,
    scales: Array, bias: Array, y_address: int, num_threads: int,
) -> None:  # fmt: skip
    """As `_multiply`, over blocks of packed weights. excess: [out_features], what the inputs' zero point adds."""
    out_features = len(scales)
    x = carray(pointer(x_address), (num_rows, in_features), kind.dtype)
    y = carray(pointer(y_address), (num_rows, out_features), kind.dtype)
    codes = np.empty((num_rows, in_features), np.uint8)
    row_scales = np.empty(num_rows, np.float32)
    if num_rows < _ROWS_FOR_THREADS:
        for row in range(num_rows):
            row_scales[row] = _quantise(x[row], _ZERO_POINT, codes[row])
    else:
        for row in prange(num_rows):
            row_scales[row] = _quantise(x[row], _ZERO_POINT, codes[row])
    tiles = gemv.num_tiles(num_rows)
    work = (out_features + gemv.CHANNELS - 1) // gemv.CHANNELS * tiles
    for thread in prange(num_threads):
        sums = np.empty((gemv.TILE_ROWS, gemv.CHANNELS), np.int32)
        for turn in range(thread * work // num_threads, (thread + 1) * work // num_threads):
            block, tile = turn // tiles, turn % tiles
            first_row, stop_row = gemv.tile_bounds(tile, num_rows)
            gemv.dot_tile(
                codes, weights + block * bytes_per_block, bytes_per_block, codes[first_row:].ctypes.data, in_features,
                stop_row - first_row, in_features // 4, tile, sums,
            )  # fmt: skip
            first = block * gemv.CHANNELS
            for row in range(first_row, stop_row):
                for o in range(first, min(first + gemv.CHANNELS, out_features)):
                    total = np.float32(sums[row - first_row, o - first] - excess[o])
                    value = total * scales[o] * row_scales[row] + bias[o]
                    y[row, o] = like(value, y[row, o])
