"""What a sample of examples can tell: bootstrap intervals, a paired permutation test, and Holm's correction for many.

All functions take per-example statistics, [examples, statistics] float64, and the metric's function from their sums to
a score, so that means (accuracy) and micro averages (entity F1) are treated alike. Results depend on the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
NUM_RESAMPLES = 2_000
NUM_PERMUTATIONS = 10_000
_ROWS_PER_CHUNK = 100  # of resamples or permutations: bounds memory at a few MB for 1,000 examples

Statistics = npt.NDArray[np.float64]
Aggregate = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Estimate:
    """A score or a difference of scores with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(
    statistics: Statistics, aggregate: Aggregate, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Estimate:
    """Return the score of all examples, between 0 and 1, with its percentile interval over resampled examples.

    Where the score is 0 or 1, all resamples are alike, and the open end of the interval is the exact binomial one.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13; Clopper and Pearson 1934.
    """
    _check_examples(statistics)
    value = _score(statistics, aggregate)
    if value in (0.0, 1.0):
        reach = ((1 - CONFIDENCE) / 2) ** (1 / len(statistics))
        return Estimate(value, 0.0, 1 - reach) if value == 0.0 else Estimate(value, reach, 1.0)
    scores = [aggregate(row.tolist()) for row in _resampled_sums(statistics, seed, num_resamples)]
    return _estimate(value, scores)


def bootstrap_lift(
    base: Statistics, tuned: Statistics, aggregate: Aggregate, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Estimate:
    """Return the score of `tuned` minus that of `base`, both on the same resampled examples.

    base, tuned: row i of both belongs to the same example. Raises ValueError when their shapes differ.
    """
    _check_paired(base, tuned)
    num_columns = base.shape[1]
    both = np.concatenate([base, tuned], axis=1)
    lifts = [
        aggregate(row[num_columns:].tolist()) - aggregate(row[:num_columns].tolist())
        for row in _resampled_sums(both, seed, num_resamples)
    ]
    return _estimate(_score(tuned, aggregate) - _score(base, aggregate), lifts)


def permutation_p_value(
    base: Statistics,
    tuned: Statistics,
    aggregate: Aggregate,
    *,
    seed: int = 0,
    num_permutations: int = NUM_PERMUTATIONS,
) -> float:
    """Return the two-sided p-value of the hypothesis that swapping the two contenders on any example changes nothing.

    The smallest possible value is 1 / (num_permutations + 1). Raises ValueError when the shapes differ.
    Source: Phipson and Smyth 2010, Permutation P-values Should Never Be Zero.
    """
    _check_paired(base, tuned)
    observed = abs(_score(tuned, aggregate) - _score(base, aggregate)) - 1e-12  # a tie must not be lost to rounding
    base_sums, tuned_sums, difference = base.sum(axis=0), tuned.sum(axis=0), tuned - base
    random = np.random.default_rng(seed)
    num_as_extreme = 0
    for num_rows in _chunks(num_permutations):
        moved = random.integers(0, 2, size=(num_rows, len(base))).astype(np.float64) @ difference
        for row in moved:
            lift = aggregate((tuned_sums - row).tolist()) - aggregate((base_sums + row).tolist())
            num_as_extreme += abs(lift) >= observed
    return (num_as_extreme + 1) / (num_permutations + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values, in the same order, adjusted for being read together.

    Rejecting what is below a level then errs on any of them with at most that probability, however they depend on each
    other. Source: Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _resampled_sums(statistics: Statistics, seed: int, num_resamples: int) -> Iterator[Statistics]:
    random = np.random.default_rng(seed)
    num_examples = len(statistics)
    for num_rows in _chunks(num_resamples):
        picked = random.integers(0, num_examples, size=(num_rows, num_examples))
        picked += np.arange(num_rows)[:, None] * num_examples
        # How often each example was picked: a product with this is quicker than gathering the rows.
        counts = np.bincount(picked.ravel(), minlength=num_rows * num_examples).reshape(num_rows, num_examples)
        yield from counts.astype(np.float64) @ statistics


def _chunks(num_rows: int) -> Iterator[int]:
    for start in range(0, num_rows, _ROWS_PER_CHUNK):
        yield min(_ROWS_PER_CHUNK, num_rows - start)


def _score(statistics: Statistics, aggregate: Aggregate) -> float:
    return aggregate(statistics.sum(axis=0).tolist())


def _estimate(value: float, resampled: Sequence[float]) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.asarray(resampled), [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def _check_examples(statistics: Statistics) -> None:
    if statistics.ndim != 2 or len(statistics) == 0:
        raise ValueError(f"statistics must be [examples > 0, statistics], not {statistics.shape}")


def _check_paired(base: Statistics, tuned: Statistics) -> None:
    _check_examples(base)
    if base.shape != tuned.shape:
        raise ValueError(f"paired statistics must have one shape, not {base.shape} and {tuned.shape}")
