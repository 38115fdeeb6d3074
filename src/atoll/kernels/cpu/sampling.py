"""The sampler's loops over the vocabulary; `kernels.reference.sampling` says what they mean, to the bit.

Floats are compared as integers of the same order: unlike those of floats, such loops become vector instructions, and
NaN shows as an integer out of range. Thresholds are found by bisection, which sorts nothing.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from atoll.kernels.cpu.exp import LN2_HIGH, LN2_LOW, LOG2_E, polynomial
from atoll.kernels.sampling import Doubles, Floats, Ints, Keys

_ONE_BITS = 42
_ONE = np.float32(2**_ONE_BITS)
_FLOOR = np.float32(-40)
_HALF = np.float32(0.5)

_INFINITY = np.int32(0x7F800000)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_SIGN = np.int32(31)
_ZERO = np.int64(0)
_CHUNK = 512


@njit(inline="always")
def _key(bits: np.int32) -> np.int32:
    """The bits of a float32 as an integer of the same order: its magnitude, negative where the sign is set."""
    sign = bits >> _SIGN
    return np.int32((bits ^ (sign & _MAGNITUDE)) - sign)


@njit(inline="always")
def _weight(x: np.float32) -> np.int64:
    """floor(exp(x) * 2**42) for x <= 0."""
    x = max(x, _FLOOR)
    whole = np.floor(x * LOG2_E + _HALF)
    rest = x - whole * LN2_HIGH - whole * LN2_LOW
    return np.int64(polynomial(rest) * _ONE) >> np.int64(-whole)


@njit(nogil=True)
def _find_best(bits: Keys) -> int:
    """The first of the best tokens; -1 where a logit is NaN or +inf, or all are -inf."""
    highest, lowest = -_INFINITY, _INFINITY
    for i in range(len(bits)):
        key = _key(bits[i])
        highest = max(highest, key)
        lowest = min(lowest, key)
    if highest >= _INFINITY or highest <= -_INFINITY or lowest < -_INFINITY:
        return -1
    for i in range(len(bits)):
        if _key(bits[i]) == highest:
            return i
    return -1


@njit(parallel=True, nogil=True, cache=True)
def summarise(logits: Floats, best: Ints, log_totals: Doubles) -> None:
    """Fills best [n], -1 for a row that is not numbers, and log_totals [n], NaN for it. logits: [n, vocab]."""
    bits = logits.view(np.int32)
    for r in prange(len(logits)):
        row = logits[r]
        best[r] = _find_best(bits[r])
        log_totals[r] = np.nan
        if best[r] >= 0:
            highest, total = row[best[r]], _ZERO
            for i in range(len(row)):
                total += _weight(row[i] - highest)
            log_totals[r] = highest + math.log(total) - _ONE_BITS * math.log(2.0)


@njit(parallel=True, nogil=True, cache=True)
def draw(
    logits: Floats, temperature: Floats, top_k: Ints, top_p: Doubles, typical_p: Doubles, uniform: Doubles, out: Ints
) -> None:
    """Fills out [n]. The other arguments: [n], as `kernels.sampling.Choice` says. logits: [n, vocab]."""
    bits = logits.view(np.int32)
    for r in prange(len(logits)):
        best = _find_best(bits[r])
        if best < 0 or temperature[r] == 0:
            out[r] = max(best, 0)
            continue
        weights = np.empty(len(bits[r]), np.int64)
        _weigh(logits[r], logits[r, best], temperature[r], weights)
        _cut(bits[r], top_k[r], top_p[r], weights)
        if typical_p[r] < 1:
            keys = _typicality(logits[r], logits[r, best], temperature[r], weights)
            _keep(keys, weights, weights, math.ceil(typical_p[r] * np.float64(weights.sum())))
        out[r] = _pick(weights, uniform[r])


@njit(nogil=True)
def _weigh(row: Floats, best: np.float32, temperature: np.float32, weights: Ints) -> None:
    for i in range(len(row)):
        weights[i] = _weight((row[i] - best) / temperature)


@njit(nogil=True)
def _cut(bits: Keys, top_k: int, top_p: float, weights: Ints) -> None:
    """Apply top_k, then top_p to what it leaves."""
    if not (0 < top_k < len(bits)) and top_p >= 1:
        return
    keys = np.empty(len(bits), np.int32)
    for i in range(len(bits)):
        keys[i] = _key(bits[i])
    if 0 < top_k < len(bits):
        _keep(keys, weights, np.ones(len(bits), np.int64), top_k)
    if top_p < 1:
        _keep(keys, weights, weights, math.ceil(top_p * np.float64(weights.sum())))


@njit(nogil=True)
def _typicality(row: Floats, best: np.float32, temperature: np.float32, weights: Ints) -> Keys:
    """Keys [vocab], higher the closer a token's information is to the entropy."""
    mean, total = 0.0, _ZERO
    for i in range(len(row)):
        mean += weights[i] * np.float64(max((row[i] - best) / temperature, _FLOOR))
        total += weights[i]
    mean /= np.float64(total)
    away = np.empty(len(row), np.float32)
    for i in range(len(row)):
        away[i] = -abs(max((row[i] - best) / temperature, _FLOOR) - mean)
    keys = away.view(np.int32)
    for i in range(len(row)):
        keys[i] = _key(keys[i])
    return keys


@njit(nogil=True)
def _keep(keys: Keys, weights: Ints, masses: Ints, goal: int) -> None:
    """Set all weights to zero but those of the highest keys whose masses reach `goal`; ties all stay."""
    low, high = (
        np.int64(keys.min()),
        np.int64(keys.max()) + 1,
    )  # the masses from low on reach the goal, from high on not
    while high - low > 1:
        middle = (low + high) >> 1
        if _mass(keys, masses, np.int32(middle)) >= goal:
            low = middle
        else:
            high = middle
    threshold = np.int32(low)
    for i in range(len(keys)):
        weights[i] = weights[i] if keys[i] >= threshold else _ZERO


@njit(nogil=True)
def _mass(keys: Keys, masses: Ints, threshold: np.int32) -> np.int64:
    total = _ZERO
    for i in range(len(keys)):
        total += masses[i] if keys[i] >= threshold else _ZERO
    return total


@njit(nogil=True)
def _pick(weights: Ints, uniform: float) -> int:
    """Where the sum of the weights in vocabulary order passes the share `uniform` of all."""
    total = weights.sum()
    left = min(np.int64(uniform * np.float64(total)), total - 1)
    start = 0
    while True:
        chunk = weights[start : start + _CHUNK].sum()
        if chunk > left:
            break
        left -= chunk
        start += _CHUNK
    while weights[start] <= left:
        left -= weights[start]
        start += 1
    return start
