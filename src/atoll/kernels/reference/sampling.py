"""One row's draw, written for reading: whole sorts and whole sums. Same bits as the CPU kernel."""

from __future__ import annotations

import math

import numpy as np

from atoll.kernels.sampling import Choice, Floats, Ints

ONE = 2**42
"""The weight of the best token: room for 2**20 tokens in an int64, and a sum exact to 2**-42 of it for each token."""

_FLOOR = np.float32(-40)  # exp(-40) * ONE is nothing
_POLYNOMIAL = [
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
]


def weigh(exponents: Floats) -> Ints:
    """floor(exp(x) * ONE) to float32's precision, by IEEE additions and products alone: the same on every machine.

    exponents: any shape, at most 0. Source: Cephes' expf.
    """
    x = np.maximum(exponents, _FLOOR)
    whole = np.floor(x * np.float32(1.44269504088896341) + np.float32(0.5))
    rest = x - whole * np.float32(0.693359375) - whole * np.float32(-2.12194440e-4)
    y = _POLYNOMIAL[0]
    for coefficient in _POLYNOMIAL[1:]:
        y = y * rest + coefficient
    y = y * rest * rest + rest + np.float32(1)
    weights: Ints = (y * np.float32(ONE)).astype(np.int64) >> (-whole).astype(np.int64)
    return weights


def choose(logits: Floats, choice: Choice) -> int:
    """One row's token id; logits: [vocab]."""
    best = logits.max()
    if not np.isfinite(best):
        return 0
    if choice.temperature == 0:
        return int(logits.argmax())
    limits = np.finfo(np.float32)
    with np.errstate(over="ignore"):
        exponents = (logits - best) / np.clip(choice.temperature, limits.tiny, limits.max).astype(np.float32)
    weights = weigh(exponents)
    if 0 < choice.top_k < len(logits):
        _keep(weights, logits, np.ones_like(weights), choice.top_k)
    if choice.top_p < 1:
        _keep(weights, logits, weights, math.ceil(choice.top_p * float(weights.sum())))
    if choice.typical_p < 1:
        _keep(weights, -surprise(exponents, weights), weights, math.ceil(choice.typical_p * float(weights.sum())))
    cumulated = weights.cumsum()
    total = int(cumulated[-1])
    goal = min(int(choice.uniform * float(total)), total - 1)
    return int(cumulated.searchsorted(goal, side="right"))


def surprise(exponents: Floats, weights: Ints) -> Floats:
    """How far each token's information lies from the entropy, in nats. Source: arXiv 2202.00666."""
    exponents = np.maximum(exponents, _FLOOR)
    mean = (weights * exponents.astype(np.float64)).cumsum()[-1] / float(weights.sum())
    away: Floats = np.abs(exponents - mean).astype(np.float32)
    return away


def _keep(weights: Ints, keys: Floats, masses: Ints, goal: int) -> None:
    """Set all weights to zero but those of the highest keys whose masses reach `goal`; ties all stay."""
    order = np.argsort(-keys, kind="stable")
    count = int(masses[order].cumsum().searchsorted(goal, side="left"))
    weights[keys < keys[order[min(count, len(order) - 1)]]] = 0
