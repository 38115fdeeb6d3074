"""A metric's scores, and what may be said of the difference between two contenders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from atoll.errors import DataError
from atoll.evaluation import statistics
from atoll.evaluation.outputs import ADAPTER, Output, Part
from atoll.evaluation.statistics import Estimate, Statistics
from atoll.tasks.metrics import Answer, Metric

MAX_P_VALUE = 0.05
# The sums of a matrix product depend in their last bits on how many threads made it; these digits do not.
_DIGITS = 10

Verdict = Literal["beats", "loses to", "no difference shown"]


class Score(Part):
    """A score, or a difference of scores, with its 95 % interval."""

    value: float
    low: float
    high: float


class Comparison(Part):
    """The adapter against another contender on the same examples; `lift` is the adapter's score minus the other's.

    One beats the other only where the interval and the permutation test both say so.
    """

    lift: Score
    p_value: float
    verdict: Verdict


class MetricResult(Part):
    """One metric of one member: each contender's score, and the adapter against each other contender."""

    metric: str
    scores: dict[str, Score]
    against: dict[str, Comparison]


def example_statistics(metric: Metric, outputs: Sequence[Output]) -> Statistics:
    """[examples, statistics]: the metric's statistics of each answer.

    A failure has those of an empty answer without the first, the credit, so that it counts as 0 even where an empty
    answer happens to be right.
    """
    table = metric.table(
        Answer("" if output.has_failed else output.prediction, output.reference, output.columns) for output in outputs
    )
    rows = [(0.0, *row[1:]) if output.has_failed else row for output, row in zip(outputs, table, strict=True)]
    return np.asarray(rows, dtype=np.float64)


def score_metric(metric: Metric, per_example: Mapping[str, Statistics], seed: int) -> MetricResult:
    """One metric over all contenders' answers to the same examples. Raises DataError for a score that is no number."""
    scores = {
        name: score_of(statistics.bootstrap(rows, metric.aggregate, seed=seed)) for name, rows in per_example.items()
    }
    tuned = per_example[ADAPTER]
    against = {name: _compare(rows, tuned, metric, seed) for name, rows in per_example.items() if name != ADAPTER}
    return MetricResult(metric=metric.name, scores=scores, against=against)


def verdict_of(score: Score, other: float) -> Verdict:
    """Where an interval lies: above `other`, below it, or around it."""
    if score.low > other:
        return "beats"
    return "loses to" if score.high < other else "no difference shown"


def score_of(estimate: Estimate) -> Score:
    """The estimate as it is written down. Raises DataError for one that is no number."""
    figures = (estimate.value, estimate.low, estimate.high)
    if not all(map(math.isfinite, figures)):
        raise DataError("a score is not a number", why=f"value, low and high are {figures}")
    value, low, high = (round(figure, _DIGITS) for figure in figures)
    return Score(value=value, low=low, high=high)


def _compare(other: Statistics, tuned: Statistics, metric: Metric, seed: int) -> Comparison:
    lift = score_of(statistics.bootstrap_lift(other, tuned, metric.aggregate, seed=seed))
    p_value = round(statistics.permutation_p_value(other, tuned, metric.aggregate, seed=seed), _DIGITS)
    verdict = verdict_of(lift, 0.0) if p_value < MAX_P_VALUE else "no difference shown"
    return Comparison(lift=lift, p_value=p_value, verdict=verdict)
