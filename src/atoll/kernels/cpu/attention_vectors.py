# mypy: disable-error-code="attr-defined, no-untyped-call, type-arg"
"""Products of the heads that share a head of the cache with four positions of it, in vectors; for kernels.

numba has no vectors: its own loops add up each score across the lanes and fetch each key once for every head. What is
left where a head's size is no multiple of LANES is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from atoll.kernels.cpu.values import INDEX, LANES, VECTOR, emit_loop, multiply_add, prefetch, spread

POSITIONS = 4
MAX_HEADS = LANES // POSITIONS
"""Their sums take half of the registers: 16 of the 32 of AVX-512, 8 of the 16 of AVX2."""


@intrinsic
def score_four(
    typing_context: Any, kind: Any, queries: Any, num_heads: Any, dim: Any, key0: Any, key1: Any, key2: Any, key3: Any,
    scores: Any, score_bytes: Any, ahead: Any,
) -> Any:  # fmt: skip
    """scores [num_heads, 4] = queries [num_heads, dim] @ the four keys [dim].

    kind: an array of the keys' type, float32 or uint16 (bfloat16); the rest is float32. queries, keys, scores:
    addresses; one head's scores are `score_bytes` from the next. num_heads: at most MAX_HEADS. ahead: so many bytes
    after what is read lies what memory is asked for meanwhile.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        _, queries, num_heads, dim, *keys, scores, score_bytes, ahead = arguments

        def emit(count: int) -> None:
            starts = [builder.add(queries, builder.mul(dim, INDEX(4 * head))) for head in range(count)]

            def emit_step(place: ir.Value, totals: Sequence[ir.Value]) -> list[ir.Value]:
                loaded = [_load(builder, signature.args[0].dtype, key, place, ahead) for key in keys]
                grown = []
                for head, start in enumerate(starts):
                    query = _load(builder, types.float32, start, place)
                    own = totals[POSITIONS * head : POSITIONS * (head + 1)]
                    grown += [multiply_add(builder, query, key, total) for key, total in zip(loaded, own, strict=True)]
                return grown

            zeros = [ir.Constant(VECTOR, None)] * (POSITIONS * count)
            totals = emit_loop(builder, builder.and_(dim, INDEX(-LANES)), LANES, zeros, emit_step)
            for head in range(count):
                sums = _emit_sums(builder, totals[POSITIONS * head : POSITIONS * (head + 1)])
                place = builder.add(scores, builder.mul(score_bytes, INDEX(head)))
                builder.store(sums, builder.inttoptr(place, sums.type.as_pointer()), align=4)

        _emit_cases(builder, num_heads, emit)
        return context.get_dummy_value()

    return types.none(kind, *[types.int64] * 10), generate


@intrinsic
def add_four(
    typing_context: Any, kind: Any, sums: Any, num_heads: Any, dim: Any, values: Any, value_bytes: Any, weights: Any,
    weight_bytes: Any, ahead: Any,
) -> Any:  # fmt: skip
    """sums [num_heads, dim] += weights [num_heads, 4] @ values [4, dim].

    kind: an array of the values' type. sums, values, weights: addresses; one position's values are `value_bytes` from
    the next, one head's weights `weight_bytes`. num_heads, ahead: as for `score_four`.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        _, sums, num_heads, dim, values, value_bytes, weights, weight_bytes, ahead = arguments
        rows = [builder.add(values, builder.mul(value_bytes, INDEX(position))) for position in range(POSITIONS)]

        def emit(count: int) -> None:
            factors = []
            for head in range(count):
                start = builder.add(weights, builder.mul(weight_bytes, INDEX(head)))
                for position in range(POSITIONS):
                    at = builder.inttoptr(builder.add(start, INDEX(4 * position)), ir.FloatType().as_pointer())
                    factors.append(spread(builder, builder.load(at, align=4), LANES))

            def emit_step(place: ir.Value, totals: Sequence[ir.Value]) -> list[ir.Value]:
                loaded = [_load(builder, signature.args[0].dtype, row, place, ahead) for row in rows]
                for head in range(count):
                    at = builder.add(sums, builder.mul(dim, INDEX(4 * head)))
                    total = _load(builder, types.float32, at, place)
                    own = factors[POSITIONS * head : POSITIONS * (head + 1)]
                    for factor, value in zip(own, loaded, strict=True):
                        total = multiply_add(builder, factor, value, total)
                    builder.store(total, _at(builder, types.float32, at, place), align=4)
                return []

            emit_loop(builder, builder.and_(dim, INDEX(-LANES)), LANES, [], emit_step)

        _emit_cases(builder, num_heads, emit)
        return context.get_dummy_value()

    return types.none(kind, *[types.int64] * 8), generate


def _emit_cases(builder: ir.IRBuilder, num_heads: ir.Value, emit: Callable[[int], None]) -> None:
    """`emit` for each number of heads, of which the one that comes is taken."""
    done = builder.append_basic_block()
    cases = builder.switch(num_heads, done)
    for count in range(1, MAX_HEADS + 1):
        block = builder.append_basic_block()
        cases.add_case(count, block)
        builder.position_at_end(block)
        emit(count)
        builder.branch(done)
    builder.position_at_end(done)


def _at(builder: ir.IRBuilder, kind: Any, start: ir.Value, place: ir.Value) -> ir.Value:
    number, size = (ir.FloatType(), 4) if kind == types.float32 else (ir.IntType(16), 2)
    address = builder.add(start, builder.mul(place, INDEX(size)))
    return builder.inttoptr(address, ir.VectorType(number, LANES).as_pointer())


def _load(
    builder: ir.IRBuilder, kind: Any, start: ir.Value, place: ir.Value, ahead: ir.Value | None = None
) -> ir.Value:
    """A vector of float32 from element `place` on."""
    loaded = builder.load(_at(builder, kind, start, place), align=2)
    if ahead is not None:
        prefetch(builder, _at(builder, kind, builder.add(start, ahead), place))
    if kind == types.float32:
        return loaded
    wide = ir.VectorType(ir.IntType(32), LANES)
    shifted = builder.shl(builder.zext(loaded, wide), ir.Constant(wide, [16] * LANES))
    return builder.bitcast(shifted, VECTOR)


def _emit_sums(builder: ir.IRBuilder, vectors: Sequence[ir.Value]) -> ir.Value:
    """The sums across the lanes of four vectors, as a vector of four: each round adds two and keeps both apart."""

    def pick(x: ir.Value, y: ir.Value, lanes: Sequence[int]) -> ir.Value:
        return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes)))

    def fold(x: ir.Value, y: ir.Value, width: int) -> ir.Value:
        """Of both, runs of `width` lanes: their first halves and their second halves added, x's before y's."""
        half, size = width // 2, x.type.count
        lanes = [lane for lane in range(2 * size) if lane % width < half]
        return builder.fadd(pick(x, y, lanes), pick(x, y, [lane + half for lane in lanes]))

    a, b, c, d = vectors
    x, width = fold(fold(a, b, LANES), fold(c, d, LANES), LANES // 2), LANES // 4
    while width > 1:
        x, width = fold(x, x, width), width // 2
        x = pick(x, x, range(x.type.count // 2))
    return x
