# mypy: disable-error-code="attr-defined, call-arg, no-untyped-call, untyped-decorator"
"""One layer of a step of few rows as one call of a kernel, on the CPU.

A layer is ten kernels. Between them Python is as slow as it gets, because the weights that stream past push it out of
the caches: with one row it took half of the time. Here the same kernels follow one another without it, so that a row
has the same bits on either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import carray, njit, types
from numba.extending import overload
from torch import Tensor

from atoll.kernels.cpu import attention, fused, gemv, int8, lora
from atoll.kernels.cpu.linear import DenseLinear
from atoll.kernels.cpu.threads import num_threads, set_num_threads
from atoll.kernels.cpu.values import COMPILED_ONLY, Array, like, pointer, to_float32

if TYPE_CHECKING:
    from atoll.kernels.linear import PackedLinear
    from atoll.kernels.lora import LoraTable

Norm = tuple[Tensor, float]
"""The weight and the epsilon of an RMSNorm."""


@dataclass(frozen=True)
class Part:
    """Linear layers that share an input: their product, and their adapters."""

    product: PackedLinear
    adapters: LoraTable


class FewRowsLayer:
    """A layer that computes as Llama's does: norm, attention, sum, norm, gated MLP, sum."""

    def __init__(
        self, norms: tuple[Norm, Norm], parts: Sequence[Part], *, num_heads: int, scale: float, window: int | None
    ) -> None:
        """norms: before attention and before the MLP. parts: qkv, o, gate and up, down."""
        self._norms = norms
        self._parts = tuple(parts)  # whose memory the records point to
        self._products = np.array([_record_product(part.product) for part in parts], _PRODUCT)
        self._adapters = np.array([_record_adapters(part.adapters) for part in parts], _ADAPTERS)
        qkv, _, gate_up, down = (part.product for part in parts)
        self._width = (
            3 * qkv.in_features
            + max(qkv.out_features, gate_up.out_features)
            + max(parts[1].product.in_features, down.in_features)
        )
        in_8_bits = isinstance(qkv, int8.Int8Linear)
        self._weight_kind = np.empty(0, np.int8) if in_8_bits else fused.KINDS[norms[0][0].dtype]
        self._num_heads, self._scale, self._window = num_heads, float(scale), window or attention.NO_WINDOW

    @staticmethod
    def takes(norms: Sequence[Norm], parts: Sequence[Part]) -> bool:
        """Whether there are kernels for all parts of a layer, on this processor."""
        weights = [weight for weight, _ in norms]
        dtypes = {weight.dtype for weight in weights}
        dtypes |= {part.product.dtype for part in parts if isinstance(part.product, DenseLinear)}
        return (
            all(weight.is_cpu and weight.is_contiguous() for weight in weights)
            and len(dtypes) == 1
            and dtypes <= fused.KINDS.keys()
            and len({type(part.product) for part in parts}) == 1
            and all(_record_product(part.product) and part.adapters.dtype in fused.KINDS for part in parts)
        )

    def fits(self, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor) -> bool:
        """Whether these arguments are such as the kernel trusts them to be."""
        shape, dtype = keys.shape, x.dtype
        return (
            len(x) <= gemv.FEW_ROWS
            and shape == values.shape
            and shape[2] % 2 == 0
            and cos.numel() == sin.numel() == len(x) * shape[2]
            and dtype == self._norms[0][0].dtype == cos.dtype == sin.dtype == keys.dtype == values.dtype
            and all(tensor.is_contiguous() for tensor in (x, cos, sin, keys, values))
        )

    def __call__(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        segments: Array,
        kv_index: Tensor,
        keys: Tensor,
        values: Tensor,
        plan: attention.Plan,
    ) -> Tensor:
        """x: [tokens, hidden], one token of each request. Returns the same shape; keeps keys and values in the cache.

        cos, sin: [tokens, dim]. segments: [n, 3] int64 (slot, start, stop). kv_index: [tokens] int64. keys, values:
        one layer of the cache, [positions, num_kv_heads, dim]. plan: covers all rows.
        """
        kind = fused.KINDS[x.dtype]
        out, work = torch.empty_like(x), x.new_empty(len(x) * self._width)
        (before, eps_before), (after, eps_after) = self._norms
        _run(
            kind, self._weight_kind, self._parts[0].adapters.kind, x.data_ptr(), out.data_ptr(), work.data_ptr(),
            len(x), before.data_ptr(), eps_before, after.data_ptr(), eps_after, self._products, self._adapters,
            segments, cos.data_ptr(), sin.data_ptr(), kv_index.data_ptr(), keys.data_ptr(), values.data_ptr(),
            *keys.shape, self._num_heads, self._scale, self._window, plan.block_size, plan.table, plan.pieces,
            plan.merges, plan.num_unfinished, plan.max_threads, num_threads(),
        )  # fmt: skip
        return out


# Addresses and sizes; scales and excess are 0 where weights are not in 8 bits.
_PRODUCT = np.dtype(
    [(name, np.int64) for name in (
        "weights", "bytes_per_block", "in_features", "out_features", "chunk", "bias", "scales", "excess"
    )]
)  # fmt: skip
_ADAPTERS = np.dtype(
    [(name, np.int64) for name in ("addresses", "ranks", "scalings", "columns", "num_slots", "num_modules")]
)


def _record_product(product: PackedLinear) -> tuple[int, ...] | None:
    """One of _PRODUCT, or None where the product's weights do not lie as `gemv` reads them."""
    if not isinstance(product, DenseLinear | int8.Int8Linear) or product.blocks is None:
        return None
    place = product.blocks.address, product.blocks.bytes_per_block, product.in_features, product.out_features
    if isinstance(product, DenseLinear):
        return *place, gemv.chunk_of(product.in_features), product.offsets.ctypes.data, 0, 0
    return *place, 0, *(array.ctypes.data for array in (product.bias, product.scales, product.excess))


def _record_adapters(table: LoraTable) -> tuple[int, ...]:
    arrays = table.addresses, table.ranks, table.scalings, table.columns
    return *(array.ctypes.data for array in arrays), *table.ranks.shape


@njit(nogil=True)
def _use_threads(size: int, most: int) -> None:
    set_num_threads(np.int32(min(most, 1 + size // fused.PER_THREAD)))


def _multiply(kind: Array, weight_kind: Array, product: Any, x: int, num_rows: int, y: int, num_threads: int) -> None:
    """y [num_rows, out_features] = x [num_rows, in_features] @ weight.T + bias; for kernels.

    weight_kind: an empty array of the weights' type. x, y: addresses.
    """
    raise RuntimeError(COMPILED_ONLY)


@overload(_multiply)
def _choose_multiply(
    kind: Any, weight_kind: Any, product: Any, x: Any, num_rows: Any, y: Any, num_threads: Any
) -> Any:  # fmt: skip
    def as_they_are(
        kind: Any, weight_kind: Any, product: Any, x: Any, num_rows: Any, y: Any, num_threads: Any
    ) -> Any:  # fmt: skip
        gemv.multiply_kernel(
            kind, x, num_rows, product.in_features, product.chunk, product.weights, product.bytes_per_block,
            carray(pointer(product.bias), (product.out_features,), np.float32), y, num_threads,
        )  # fmt: skip

    def in_8_bits(
        kind: Any, weight_kind: Any, product: Any, x: Any, num_rows: Any, y: Any, num_threads: Any
    ) -> Any:  # fmt: skip
        size = product.out_features
        int8.multiply_blocks_kernel(
            kind, x, num_rows, product.in_features, product.weights, product.bytes_per_block,
            carray(pointer(product.excess), (size,), np.int32), carray(pointer(product.scales), (size,), np.float32),
            carray(pointer(product.bias), (size,), np.float32), y, num_threads,
        )  # fmt: skip

    # One of them only, as each takes seconds to compile.
    return in_8_bits if weight_kind.dtype == types.int8 else as_they_are


@njit(nogil=True)
def _adapt(
    kind: Array, adapter_kind: Array, product: Any, adapters: Any, segments: Array, x: int, num_rows: int, y: int,
    num_threads: int,
) -> None:  # fmt: skip
    """Add the adapters' products to y. x, y: as for `_multiply`."""
    shape = adapters.num_slots, adapters.num_modules
    ranks = carray(pointer(adapters.ranks), shape, np.int32)
    work = 0
    for i in range(len(segments)):
        if segments[i, 0] >= 0:
            work += ranks[segments[i, 0]].sum()
    if work > 0:
        set_num_threads(np.int32(num_threads))
        lora.add_group_kernel(
            carray(pointer(x), (num_rows, product.in_features), kind.dtype),
            carray(pointer(y), (num_rows, product.out_features), kind.dtype),
            segments,
            carray(pointer(adapters.addresses), (shape[0], shape[1], 2), np.int64),
            ranks,
            carray(pointer(adapters.scalings), shape, np.float32),
            carray(pointer(adapters.columns), (shape[1] + 1,), np.int64),
            adapter_kind,
            num_threads,
        )


@njit(nogil=True)
def _apply(
    kind: Array, weight_kind: Array, adapter_kind: Array, product: Any, adapters: Any, segments: Array, x: int,
    num_rows: int, y: int, num_threads: int,
) -> None:  # fmt: skip
    """y [num_rows, out_features] = one part of the layer, adapters included. x, y: addresses."""
    threads = min(num_threads, (product.out_features + gemv.CHANNELS - 1) // gemv.CHANNELS)
    set_num_threads(np.int32(threads))
    _multiply(kind, weight_kind, product, x, num_rows, y, threads)
    _adapt(kind, adapter_kind, product, adapters, segments, x, num_rows, y, num_threads)


@njit(nogil=True, cache=True)
def _run(
    kind: Array, weight_kind: Array, adapter_kind: Array, x: int, out: int, work: int, num_rows: int, before: int,
    eps_before: float, after: int, eps_after: float, products: Array, adapters: Array, segments: Array, cos: int,
    sin: int, kv_index: int, keys: int, values: int, num_positions: int, num_kv_heads: int, dim: int, num_heads: int,
    scale: float, window: int, block_size: int, table: Array, pieces: Array, merges: Array, num_unfinished: int,
    attention_threads: int, num_threads: int,
) -> None:  # fmt: skip
    """x, out, work (room for what lies between), before (a norm's weight), after, cos, sin, kv_index, keys, values:
    addresses.
    """
    width, inner = products[0].in_features, products[3].in_features
    row_bytes = num_rows * kind.itemsize
    normed, total = work, work + width * row_bytes
    part = total + width * row_bytes  # what o and down give
    wide = part + width * row_bytes  # qkv, then gate and up
    narrow = wide + max(products[0].out_features, products[2].out_features) * row_bytes  # attended, then active

    _use_threads(num_rows * width, num_threads)
    fused.rms_norm_kernel(kind, x, before, normed, num_rows, width, eps_before)
    _apply(kind, weight_kind, adapter_kind, products[0], adapters[0], segments, normed, num_rows, wide, num_threads)
    _use_threads(num_rows * products[0].out_features, num_threads)
    fused.rope_store_kernel(
        kind, wide, cos, sin, kv_index, keys, values, num_rows, num_heads, num_positions, num_kv_heads, dim
    )
    threads = min(num_threads, attention_threads)
    set_num_threads(np.int32(threads))
    attention.decode_kernel(
        kind, wide, products[0].out_features, keys, values, narrow, num_rows, num_heads, dim, num_positions,
        num_kv_heads, dim, block_size, table, pieces, merges, num_unfinished, scale, 0.0, window, threads,
    )  # fmt: skip
    _apply(kind, weight_kind, adapter_kind, products[1], adapters[1], segments, narrow, num_rows, part, num_threads)
    _use_threads(num_rows * width, num_threads)
    fused.add_rms_norm_kernel(kind, x, part, after, total, normed, num_rows, width, eps_after)

    _apply(kind, weight_kind, adapter_kind, products[2], adapters[2], segments, normed, num_rows, wide, num_threads)
    _use_threads(num_rows * products[2].out_features, num_threads)
    fused.silu_mul_kernel(kind, wide, narrow, num_rows, inner)
    _apply(kind, weight_kind, adapter_kind, products[3], adapters[3], segments, narrow, num_rows, part, num_threads)
    _add(
        carray(pointer(total), (num_rows * width,), kind.dtype), carray(pointer(part), (num_rows * width,), kind.dtype),
        carray(pointer(out), (num_rows * width,), kind.dtype),
    )  # fmt: skip
    set_num_threads(np.int32(num_threads))


@njit(nogil=True)
def _add(x: Array, y: Array, out: Array) -> None:
    for i in range(len(out)):
        out[i] = like(to_float32(x[i]) + to_float32(y[i]), out[i])
