"""Intervals, p-values and Holm's correction against slow implementations that share no code with ours."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from atoll.evaluation.statistics import bootstrap, bootstrap_lift, holm, permutation_p_value
from atoll.tasks.metrics import f1, mean


def plain_percentiles(scores: list[float]) -> tuple[float, float]:
    ordered = sorted(scores)
    return ordered[int(0.025 * len(ordered))], ordered[int(0.975 * len(ordered)) - 1]


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    draw = random.Random(1)
    rows = [(draw.randint(0, 3), draw.randint(0, 2), draw.randint(0, 2)) for _ in range(60)]
    estimate = bootstrap(np.asarray(rows, dtype=np.float64), f1)
    scores = []
    for _ in range(3_000):
        picked = draw.choices(rows, k=len(rows))
        hits, wrong, missed = (sum(column) for column in zip(*picked, strict=True))
        scores.append(2 * hits / (2 * hits + wrong + missed))
    low, high = plain_percentiles(scores)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.08 * (high - low))


def test_the_interval_of_a_lift_is_that_of_a_plain_paired_bootstrap() -> None:
    draw = random.Random(2)
    pairs = [(float(draw.random() < 0.4), float(draw.random() < 0.6)) for _ in range(80)]
    base, tuned = (np.asarray([(pair[side], 1.0) for pair in pairs]) for side in (0, 1))
    estimate = bootstrap_lift(base, tuned, mean)
    lifts = []
    for _ in range(3_000):
        picked = draw.choices(pairs, k=len(pairs))
        lifts.append(sum(second - first for first, second in picked) / len(pairs))
    low, high = plain_percentiles(lifts)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.08 * (high - low))


@pytest.mark.parametrize(("num_better", "num_worse"), [(9, 3), (15, 2), (6, 6), (30, 18)])
def test_on_right_and_wrong_answers_the_p_value_is_mcnemars(num_better: int, num_worse: int) -> None:
    base = [0.0] * num_better + [1.0] * num_worse + [1.0] * 20
    tuned = [1.0] * num_better + [0.0] * num_worse + [1.0] * 20
    first, second = (np.asarray([(value, 1.0) for value in values]) for values in (base, tuned))
    number, few = num_better + num_worse, min(num_better, num_worse)
    exact = min(1.0, 2 * sum(math.comb(number, k) for k in range(few + 1)) / 2**number)
    error = 4 * math.sqrt(exact * (1 - exact) / 10_000) + 1e-3
    assert permutation_p_value(first, second, mean) == pytest.approx(exact, abs=error)


def test_holm_gives_the_known_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2]) == [0.2]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_is_closed_testing_with_bonferroni() -> None:
    draw = random.Random(3)
    for _ in range(30):
        p_values = [draw.random() ** 3 for _ in range(5)]
        for index, adjusted in enumerate(holm(p_values)):
            # A hypothesis is rejected when every set of hypotheses that holds it is; Bonferroni's test of a set is
            # its size times its smallest p-value.
            sets = [s for n in range(1, 6) for s in itertools.combinations(range(5), n) if index in s]
            assert adjusted == pytest.approx(min(1.0, max(len(s) * min(p_values[i] for i in s) for s in sets)))


def test_without_any_difference_holm_names_one_in_twenty_fleets_at_most() -> None:
    draw = random.Random(4)
    num_fleets = 2_000
    named = sum(min(holm([draw.random() for _ in range(31)])) < 0.05 for _ in range(num_fleets))
    assert named / num_fleets <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / num_fleets)
    assert named > 0
