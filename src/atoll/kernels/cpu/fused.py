# mypy: disable-error-code="attr-defined, call-arg, untyped-decorator"
"""Norm, activation and rotation with the cache's write in one pass each, on the CPU."""

from __future__ import annotations

import numpy as np
import torch
from numba import carray, njit, prange
from torch import Tensor

from atoll.kernels.cpu.exp import exp
from atoll.kernels.cpu.threads import num_threads
from atoll.kernels.cpu.values import FAST, Array, like, pointer, to_float32

KINDS: dict[torch.dtype, Array] = {torch.float32: np.empty(0, np.float32), torch.bfloat16: np.empty(0, np.uint16)}
"""Dtypes that the kernels compute, and the numpy type in which they see them."""

PER_THREAD = 16384
"""Numbers for which another thread is worth waking."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: [tokens, n], weight: [n], both contiguous and of one dtype."""
    out = torch.empty_like(x)
    num_threads(1 + x.numel() // PER_THREAD)
    rms_norm_kernel(KINDS[x.dtype], x.data_ptr(), weight.data_ptr(), out.data_ptr(), *x.shape, float(eps))
    return out


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x, y: [tokens, n], weight: [n], all contiguous and of one dtype."""
    total, out = torch.empty_like(x), torch.empty_like(x)
    num_threads(1 + x.numel() // PER_THREAD)
    add_rms_norm_kernel(
        KINDS[x.dtype], x.data_ptr(), y.data_ptr(), weight.data_ptr(), total.data_ptr(), out.data_ptr(), *x.shape,
        float(eps),
    )  # fmt: skip
    return total, out


def silu_mul(gate_up: Tensor) -> Tensor:
    """gate_up: [tokens, 2 * n], contiguous."""
    tokens, width = gate_up.shape
    out = gate_up.new_empty(tokens, width // 2)
    num_threads(1 + gate_up.numel() // PER_THREAD)
    silu_mul_kernel(KINDS[out.dtype], gate_up.data_ptr(), out.data_ptr(), tokens, width // 2)
    return out


def rms_norm_backward(x: Tensor, weight: Tensor, grad: Tensor, eps: float) -> Tensor:
    """The gradient of x. x, grad: [tokens, n], weight: [n], all contiguous and of one dtype."""
    out = torch.empty_like(x)
    num_threads(1 + x.numel() // PER_THREAD)
    _rms_norm_backward(
        KINDS[x.dtype], x.data_ptr(), weight.data_ptr(), grad.data_ptr(), out.data_ptr(), *x.shape, float(eps)
    )
    return out


def gate_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up. gate, up: [tokens, n], contiguous and of one dtype."""
    out = torch.empty_like(gate)
    num_threads(1 + gate.numel() // PER_THREAD)
    _gate_mul(KINDS[gate.dtype], gate.data_ptr(), up.data_ptr(), out.data_ptr(), *gate.shape)
    return out


def gate_mul_backward(gate: Tensor, up: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up. gate, up, grad: [tokens, n], contiguous and of one dtype."""
    of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
    num_threads(1 + gate.numel() // PER_THREAD)
    _gate_mul_backward(
        KINDS[gate.dtype], gate.data_ptr(), up.data_ptr(), grad.data_ptr(), of_gate.data_ptr(), of_up.data_ptr(),
        *gate.shape,
    )  # fmt: skip
    return of_gate, of_up


def rope_store(
    qkv: Tensor, cos: Tensor, sin: Tensor, kv_index: Tensor, keys: Tensor, values: Tensor, num_heads: int
) -> None:
    """As `kernels.fused.rope_store` says; all contiguous and of one dtype."""
    num_threads(1 + qkv.numel() // PER_THREAD)
    rope_store_kernel(
        KINDS[qkv.dtype], qkv.data_ptr(), cos.data_ptr(), sin.data_ptr(), kv_index.data_ptr(), keys.data_ptr(),
        values.data_ptr(), qkv.shape[0], num_heads, *keys.shape,
    )  # fmt: skip


@njit(fastmath=FAST, error_model="numpy", nogil=True)
def _norm_row(x: Array, weight: Array, eps: np.float32, out: Array) -> None:
    squares = np.float32(0)
    for i in range(len(x)):
        squares += to_float32(x[i]) * to_float32(x[i])
    factor = np.float32(1) / np.sqrt(squares / np.float32(len(x)) + eps)
    for i in range(len(x)):
        normal = to_float32(like(to_float32(x[i]) * factor, out[i]))
        out[i] = like(to_float32(weight[i]) * normal, out[i])


@njit(nogil=True, parallel=True, cache=True)
def rms_norm_kernel(
    kind: Array, x_address: int, weight_address: int, out_address: int, num_rows: int, width: int, eps: float
) -> None:  # fmt: skip
    x = carray(pointer(x_address), (num_rows, width), kind.dtype)
    weight = carray(pointer(weight_address), (width,), kind.dtype)
    out = carray(pointer(out_address), (num_rows, width), kind.dtype)
    small = np.float32(eps)
    for row in prange(num_rows):
        _norm_row(x[row], weight, small, out[row])


@njit(fastmath=FAST, error_model="numpy", nogil=True)
def _norm_row_backward(x: Array, weight: Array, grad: Array, eps: np.float32, out: Array) -> None:
    squares, along = np.float32(0), np.float32(0)
    for i in range(len(x)):
        squares += to_float32(x[i]) * to_float32(x[i])
        along += to_float32(grad[i]) * to_float32(weight[i]) * to_float32(x[i])
    width = np.float32(len(x))
    factor = np.float32(1) / np.sqrt(squares / width + eps)
    shrink = factor * factor * factor * along / width
    for i in range(len(x)):
        out[i] = like(factor * to_float32(grad[i]) * to_float32(weight[i]) - shrink * to_float32(x[i]), out[i])


@njit(nogil=True, parallel=True, cache=True)
def _rms_norm_backward(
    kind: Array, x_address: int, weight_address: int, grad_address: int, out_address: int, num_rows: int, width: int,
    eps: float,
) -> None:  # fmt: skip
    x = carray(pointer(x_address), (num_rows, width), kind.dtype)
    weight = carray(pointer(weight_address), (width,), kind.dtype)
    grad = carray(pointer(grad_address), (num_rows, width), kind.dtype)
    out = carray(pointer(out_address), (num_rows, width), kind.dtype)
    small = np.float32(eps)
    for row in prange(num_rows):
        _norm_row_backward(x[row], weight, grad[row], small, out[row])


@njit(nogil=True, parallel=True, cache=True)
def add_rms_norm_kernel(
    kind: Array, x_address: int, y_address: int, weight_address: int, total_address: int, out_address: int,
    num_rows: int, width: int, eps: float,
) -> None:  # fmt: skip
    x = carray(pointer(x_address), (num_rows, width), kind.dtype)
    y = carray(pointer(y_address), (num_rows, width), kind.dtype)
    weight = carray(pointer(weight_address), (width,), kind.dtype)
    total = carray(pointer(total_address), (num_rows, width), kind.dtype)
    out = carray(pointer(out_address), (num_rows, width), kind.dtype)
    small = np.float32(eps)
    for row in prange(num_rows):
        for i in range(width):
            total[row, i] = like(to_float32(x[row, i]) + to_float32(y[row, i]), total[row, i])
        _norm_row(total[row], weight, small, out[row])


# Dividing as numpy does: Python's check for zero would keep the loop from becoming vector instructions.
@njit(error_model="numpy", nogil=True)
def _silu_row(gates: Array, up: Array, out: Array) -> None:
    for i in range(len(out)):
        gate = to_float32(gates[i])
        active = to_float32(like(gate / (np.float32(1) + exp(-gate)), out[i]))
        out[i] = like(active * to_float32(up[i]), out[i])


@njit(nogil=True, parallel=True, cache=True)
def silu_mul_kernel(kind: Array, gate_up_address: int, out_address: int, num_rows: int, width: int) -> None:
    gate_up = carray(pointer(gate_up_address), (num_rows, 2 * width), kind.dtype)
    out = carray(pointer(out_address), (num_rows, width), kind.dtype)
    for row in prange(num_rows):
        _silu_row(gate_up[row, :width], gate_up[row, width:], out[row])


@njit(nogil=True, parallel=True, cache=True)
def _gate_mul(
    kind: Array, gate_address: int, up_address: int, out_address: int, num_rows: int, width: int
) -> None:  # fmt: skip
    gate = carray(pointer(gate_address), (num_rows, width), kind.dtype)
    up = carray(pointer(up_address), (num_rows, width), kind.dtype)
    out = carray(pointer(out_address), (num_rows, width), kind.dtype)
    for row in prange(num_rows):
        _silu_row(gate[row], up[row], out[row])


@njit(error_model="numpy", nogil=True)
def _silu_row_backward(gates: Array, up: Array, grad: Array, of_gate: Array, of_up: Array) -> None:
    for i in range(len(gates)):
        gate, above = to_float32(gates[i]), to_float32(grad[i])
        share = np.float32(1) / (np.float32(1) + exp(-gate))
        of_up[i] = like(above * gate * share, of_up[i])
        slope = share * (np.float32(1) + gate * (np.float32(1) - share))
        of_gate[i] = like(above * to_float32(up[i]) * slope, of_gate[i])


@njit(nogil=True, parallel=True, cache=True)
def _gate_mul_backward(
    kind: Array, gate_address: int, up_address: int, grad_address: int, of_gate_address: int, of_up_address: int,
    num_rows: int, width: int,
) -> None:  # fmt: skip
    gate = carray(pointer(gate_address), (num_rows, width), kind.dtype)
    up = carray(pointer(up_address), (num_rows, width), kind.dtype)
    grad = carray(pointer(grad_address), (num_rows, width), kind.dtype)
    of_gate = carray(pointer(of_gate_address), (num_rows, width), kind.dtype)
    of_up = carray(pointer(of_up_address), (num_rows, width), kind.dtype)
    for row in prange(num_rows):
        _silu_row_backward(gate[row], up[row], grad[row], of_gate[row], of_up[row])


# Nothing is contracted: in float32 the bits are those of transformers' own products and sums.
@njit(nogil=True)
def _rotate(heads: Array, row: int, head: int, cos: Array, sin: Array) -> None:
    half = heads.shape[2] // 2
    for d in range(half):
        x, y = heads[row, head, d], heads[row, head, half + d]
        first = to_float32(like(to_float32(x) * to_float32(cos[row, d]), x))
        second = to_float32(like(to_float32(y) * to_float32(cos[row, half + d]), x))
        minus = to_float32(like(to_float32(y) * to_float32(sin[row, d]), x))
        plus = to_float32(like(to_float32(x) * to_float32(sin[row, half + d]), x))
        heads[row, head, d] = like(first - minus, x)
        heads[row, head, half + d] = like(second + plus, x)


@njit(nogil=True, parallel=True, cache=True)
def rope_store_kernel(
    kind: Array, qkv_address: int, cos_address: int, sin_address: int, kv_index_address: int, keys_address: int,
    values_address: int, num_rows: int, num_heads: int, num_positions: int, num_kv_heads: int, dim: int,
) -> None:  # fmt: skip
    heads = carray(pointer(qkv_address), (num_rows, num_heads + 2 * num_kv_heads, dim), kind.dtype)
    cos = carray(pointer(cos_address), (num_rows, dim), kind.dtype)
    sin = carray(pointer(sin_address), (num_rows, dim), kind.dtype)
    kv_index = carray(pointer(kv_index_address), (num_rows,), np.int64)
    keys = carray(pointer(keys_address), (num_positions, num_kv_heads, dim), kind.dtype)
    values = carray(pointer(values_address), (num_positions, num_kv_heads, dim), kind.dtype)
    for row in prange(num_rows):
        for head in range(num_heads + num_kv_heads):
            _rotate(heads, row, head, cos, sin)
        for head in range(num_kv_heads):
            for d in range(dim):
                keys[kv_index[row], head, d] = heads[row, num_heads + head, d]
                values[kv_index[row], head, d] = heads[row, num_heads + num_kv_heads + head, d]
