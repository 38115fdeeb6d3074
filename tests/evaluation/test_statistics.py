"""Intervals and p-values against analytic results, complete enumeration, and simulated coverage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from atoll.evaluation.statistics import Statistics, bootstrap, bootstrap_lift, permutation_p_value
from atoll.tasks.metrics import METRICS, f1, mean

Z = 1.959964  # 97.5 % of the standard normal distribution


def points(values: Sequence[float] | Statistics) -> Statistics:
    """Statistics of a metric that is the mean of `values`."""
    array = np.asarray(values, dtype=np.float64)
    return np.stack([array, np.ones_like(array)], axis=1)


def random_entities(random: np.random.Generator, num_examples: int) -> Statistics:
    """(true positives, false positives, false negatives) of each example."""
    return random.poisson([2.0, 0.6, 0.9], size=(num_examples, 3)).astype(np.float64)


def test_the_interval_of_a_mean_is_the_normal_one_for_many_examples() -> None:
    values = np.random.default_rng(1).beta(2, 1, size=4_000)
    estimate = bootstrap(points(values), mean)
    half = Z * values.std() / math.sqrt(len(values))
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_interval_of_a_micro_average_is_that_of_the_delta_method() -> None:
    rows = random_entities(np.random.default_rng(2), 4_000)
    estimate = bootstrap(rows, f1)
    # F1 = 2 tp / d with d = 2 tp + fp + fn: a ratio of means, whose error is that of 2 tp - F1 d over d.
    denominator = rows @ np.array([2.0, 1.0, 1.0])
    half = Z * (2 * rows[:, 0] - estimate.value * denominator).std() / denominator.mean() / math.sqrt(len(rows))
    assert estimate.value == pytest.approx(f1(rows.sum(axis=0)))
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.1)


def test_the_interval_of_a_lift_uses_the_pairing() -> None:
    random = np.random.default_rng(3)
    base = random.uniform(size=2_000)
    tuned = base + random.normal(0.05, 0.02, size=2_000)
    estimate = bootstrap_lift(points(base), points(tuned), mean)
    half = Z * (tuned - base).std() / math.sqrt(2_000)
    assert estimate.value == pytest.approx((tuned - base).mean())
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.1)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(4)
    num_trials, truth = 300, 0.7
    estimates = (
        bootstrap(points(np.less(random.random(200), truth).astype(np.float64)), mean, seed=trial, num_resamples=400)
        for trial in range(num_trials)
    )
    coverage = sum(estimate.low <= truth <= estimate.high for estimate in estimates) / num_trials
    assert 0.90 <= coverage <= 0.99


@pytest.mark.parametrize(("value", "low", "high"), [(1.0, 0.6915, 1.0), (0.0, 0.0, 0.3085)])
def test_ten_of_ten_and_none_of_ten_have_the_exact_binomial_interval(value: float, low: float, high: float) -> None:
    estimate = bootstrap(points([value] * 10), mean)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((value, low, high), abs=1e-4)


def test_p_values_are_uniform_where_nothing_differs() -> None:
    random = np.random.default_rng(5)
    p_values = [
        permutation_p_value(points(random.random(60)), points(random.random(60)), mean, seed=t, num_permutations=200)
        for t in range(400)
    ]
    for level in (0.05, 0.25, 0.5, 0.75):
        share = sum(p <= level for p in p_values) / len(p_values)
        assert share == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 400) + 0.005)


def test_the_p_value_of_a_micro_average_is_that_of_all_permutations() -> None:
    random = np.random.default_rng(6)
    base, tuned = random_entities(random, 9), random_entities(random, 9) + np.array([1.0, 0.0, 0.0])
    observed = abs(f1(tuned.sum(axis=0)) - f1(base.sum(axis=0)))
    lifts = []
    for flips in itertools.product([False, True], repeat=9):
        swapped = np.asarray(flips)[:, None]
        first, second = np.where(swapped, tuned, base), np.where(swapped, base, tuned)
        lifts.append(abs(f1(second.sum(axis=0)) - f1(first.sum(axis=0))))
    exact = np.mean(np.asarray(lifts) >= observed - 1e-12)
    assert 0.01 < exact < 0.5
    assert permutation_p_value(base, tuned, f1) == pytest.approx(exact, abs=0.02)


def test_a_p_value_is_never_zero_and_equal_contenders_differ_in_nothing() -> None:
    right, wrong = points([1.0] * 100), points([0.0] * 100)
    assert permutation_p_value(wrong, right, mean, num_permutations=999) == pytest.approx(1 / 1_000)
    assert permutation_p_value(right, right, mean) == 1.0


def test_the_seed_decides_the_result() -> None:
    random = np.random.default_rng(7)
    base, tuned = random_entities(random, 50), random_entities(random, 50)
    aggregate = METRICS["entity_f1"].aggregate
    for function in (
        lambda seed: bootstrap(base, aggregate, seed=seed),
        lambda seed: bootstrap_lift(base, tuned, aggregate, seed=seed),
        lambda seed: permutation_p_value(base, tuned, aggregate, seed=seed),
    ):
        assert function(1) == function(1)
        assert function(1) != function(2)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="examples > 0"):
        bootstrap(np.empty((0, 2)), mean)
    with pytest.raises(ValueError, match="one shape"):
        bootstrap_lift(points([1.0, 0.0]), points([1.0]), mean)
    with pytest.raises(ValueError, match="one shape"):
        permutation_p_value(points([1.0, 0.0]), points([1.0]), mean)
