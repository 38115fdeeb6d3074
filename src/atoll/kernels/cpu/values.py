# mypy: disable-error-code="attr-defined, no-untyped-call"
"""What numba lacks: bfloat16, held as uint16, arrays at a known address, and code for vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import config, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic, overload
from torch import Tensor

Array = npt.NDArray[Any]

# Sums may be taken in another order and multiplications fused; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "nsz"}
FEATURES = frozenset((get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES).split(","))
"""What the processor that numba compiles for has, in LLVM's names."""

INDEX = ir.IntType(64)
"""An address or a count, in LLVM's words."""

LANES = 16 if "+avx512f" in FEATURES else 8
VECTOR = ir.VectorType(ir.FloatType(), LANES)
"""A register of float32, in LLVM's words."""

CACHE_LINE = 64
"""Bytes that memory gives at once."""

COMPILED_ONLY = "numba compiles this into kernels; Python cannot call it"
"""What a function says that only kernels can call."""


def as_numpy(tensor: Tensor) -> Array:
    """The tensor's own memory; bfloat16 as uint16."""
    view: Array = (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return view


def to_float32(value: Any) -> Any:
    """A float32, or a bfloat16 held as uint16, as float32; for kernels."""
    raise RuntimeError(COMPILED_ONLY)


def like(value: Any, example: Any) -> Any:
    """A float32 in the type of `example`, rounded to the nearest even bfloat16 where that is uint16; for kernels."""
    raise RuntimeError(COMPILED_ONLY)


@overload(to_float32)
def _to_float32(value: Any) -> Any:
    def same(value: Any) -> Any:
        return value

    def widened(value: Any) -> Any:
        return np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)

    return same if value == types.float32 else widened


@overload(like)
def _like(value: Any, example: Any) -> Any:
    def same(value: Any, example: Any) -> Any:
        return value

    def rounded(value: Any, example: Any) -> Any:
        bits = np.float32(value).view(np.uint32)
        if bits & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):
            return np.uint16(0x7FC0)  # NaN, which rounding could turn into infinity
        odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        return np.uint16(np.uint32(bits + np.uint32(odd + np.uint32(0x7FFF))) >> np.uint32(16))

    return same if example == types.float32 else rounded


def begin_sum(row: Any, scratch: Any) -> None:
    """Start a sum onto `row`: for kernels that want one rounding, however many terms there are.

    Float32 is summed in place. Where the row is bfloat16 the sum grows in `scratch` until `end_sum`.
    """
    raise RuntimeError(COMPILED_ONLY)


def running_sum(row: Any, scratch: Any) -> Any:
    """The float32 array to add to between `begin_sum` and `end_sum`."""
    raise RuntimeError(COMPILED_ONLY)


def end_sum(row: Any, scratch: Any) -> None:
    """Put the sum into `row`."""
    raise RuntimeError(COMPILED_ONLY)


@overload(begin_sum)
def _begin_sum(row: Any, scratch: Any) -> Any:
    def nothing(row: Any, scratch: Any) -> None:
        pass

    def widen(row: Any, scratch: Any) -> None:
        for k in range(len(row)):
            scratch[k] = to_float32(row[k])

    return nothing if row.dtype == types.float32 else widen


@overload(running_sum)
def _running_sum(row: Any, scratch: Any) -> Any:
    def in_place(row: Any, scratch: Any) -> Any:
        return row

    def aside(row: Any, scratch: Any) -> Any:
        return scratch

    return in_place if row.dtype == types.float32 else aside


@overload(end_sum)
def _end_sum(row: Any, scratch: Any) -> Any:
    def nothing(row: Any, scratch: Any) -> None:
        pass

    def narrow(row: Any, scratch: Any) -> None:
        for k in range(len(row)):
            row[k] = like(scratch[k], row[k])

    return nothing if row.dtype == types.float32 else narrow


@intrinsic
def pointer(typing_context: Any, address: Any) -> Any:
    """An int64 address as what `numba.carray` takes; for kernels."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


def spread(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """A vector that has `value` in all lanes; for intrinsics."""
    empty, lane = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined), ir.IntType(32)
    first = builder.insert_element(empty, value, lane(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(lane, lanes), [0] * lanes))


def multiply_add(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, total: ir.Value) -> ir.Value:
    """x * y + total of a VECTOR each, in one instruction where the processor has it; for intrinsics."""
    name, kind = f"llvm.fmuladd.v{LANES}f32", ir.FunctionType(VECTOR, [VECTOR] * 3)
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, [x, y, total])


def emit_loop(
    builder: ir.IRBuilder,
    stop: ir.Value,
    step: int,
    begin: Sequence[ir.Value],
    emit_step: Callable[[ir.Value, Sequence[ir.Value]], Sequence[ir.Value]],
) -> list[ir.Value]:
    """Carry `begin` through `emit_step` for place = 0, step, ... below `stop`, in registers; for intrinsics.

    emit_step: from the place and what is carried to what is carried on. Returns what the last one gave.
    """
    before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.cbranch(builder.icmp_signed("<", INDEX(0), stop), loop, after)
    builder.position_at_end(loop)
    place, carried = builder.phi(INDEX), [builder.phi(value.type) for value in begin]
    grown = emit_step(place, carried)
    following = builder.add(place, INDEX(step))
    builder.cbranch(builder.icmp_signed("<", following, stop), loop, after)
    builder.position_at_end(after)
    results = [builder.phi(value.type) for value in begin]
    place.add_incoming(INDEX(0), before)
    place.add_incoming(following, loop)
    for phi, start, end in zip((*carried, *results), (*begin, *begin), (*grown, *grown), strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(end, loop)
    return results


def prefetch(builder: ir.IRBuilder, place: ir.Value) -> None:
    """Ask for the cache line at a pointer before it is needed; for intrinsics."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    # To read; to the second level of the cache, as the first has no room for so much; data, not code.
    builder.call(function, [builder.bitcast(place, byte), number(0), number(2), number(1)])
