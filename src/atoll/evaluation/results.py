"""From raw answers to scores, intervals and what may be said of them (`results.json`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from atoll.config.task import PublishedScores
from atoll.evaluation import statistics
from atoll.evaluation.outputs import ADAPTER, MemberRecord, Output, Part, RunRecord, read_outputs, read_run
from atoll.evaluation.statistics import Estimate, Statistics
from atoll.tasks.metrics import Answer, Metric, find_metric

MAX_P_VALUE = 0.05
_PUBLISHED_SUFFIX = "_as_published"

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


class PublishedComparison(Part):
    """The adapter's score against a published one, taken as exact, on the metric that comes closest to theirs.

    Published scores were measured on other examples, so this is no test of one model against the other.
    """

    contender: str
    metric: str
    score: float
    verdict: Verdict


class Failure(Part):
    """An example that counts as 0 because there is no answer to it."""

    contender: str
    example_id: str
    error: str


class MemberResult(Part):
    """All that is known of one adapter on its task; the first of `metrics` is the task's score."""

    name: str
    adapter_id: str
    task: str
    category: str
    num_examples: int
    num_cut_prompts: int
    num_unfinished: dict[str, int]
    metrics: tuple[MetricResult, ...]
    published: PublishedScores | None
    published_comparisons: tuple[PublishedComparison, ...]
    failures: tuple[Failure, ...]

    @property
    def primary(self) -> MetricResult:
        return self.metrics[0]


class StatisticsRecord(Part):
    """How intervals and p-values were made."""

    confidence: float = statistics.CONFIDENCE
    num_resamples: int = statistics.NUM_RESAMPLES
    num_permutations: int = statistics.NUM_PERMUTATIONS
    max_p_value: float = MAX_P_VALUE
    seed: int


class Results(Part):
    """The whole of results.json."""

    format_version: Literal[1] = 1
    members: tuple[MemberResult, ...]
    statistics: StatisticsRecord
    run: RunRecord


def score_run(folder: Path) -> Results:
    """Score the raw answers in an evaluation's folder; equal files give equal results.

    Raises NotFound or DataError for files that are missing or damaged.
    """
    run = read_run(folder)
    members = tuple(score_member(member, read_outputs(folder, member), run.seed) for member in run.members)
    return Results(members=members, statistics=StatisticsRecord(seed=run.seed), run=run)


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


def score_member(member: MemberRecord, outputs: Mapping[str, Sequence[Output]], seed: int) -> MemberResult:
    """Score one member from its contenders' answers to the same examples."""
    metrics = tuple(_score_metric(find_metric(name, where=member.task), outputs, seed) for name in member.metrics)
    return MemberResult(
        name=member.name,
        adapter_id=member.adapter_id,
        task=member.task,
        category=member.category,
        num_examples=member.num_examples,
        num_cut_prompts=sum(output.num_cut_tokens > 0 for output in outputs[ADAPTER]),
        num_unfinished={
            name: sum(answer.finish_reason == "length" for answer in answers) for name, answers in outputs.items()
        },
        metrics=metrics,
        published=member.published,
        published_comparisons=_published(member, metrics),
        failures=tuple(
            Failure(contender=name, example_id=answer.example_id, error=answer.error)
            for name, answers in outputs.items()
            for answer in answers
            if answer.error is not None
        ),
    )


def _score_metric(metric: Metric, outputs: Mapping[str, Sequence[Output]], seed: int) -> MetricResult:
    per_example = {name: example_statistics(metric, answers) for name, answers in outputs.items()}
    scores = {
        name: _score(statistics.bootstrap(rows, metric.aggregate, seed=seed)) for name, rows in per_example.items()
    }
    tuned = per_example[ADAPTER]
    against = {
        name: _compare(rows, tuned, metric.aggregate, seed) for name, rows in per_example.items() if name != ADAPTER
    }
    return MetricResult(metric=metric.name, scores=scores, against=against)


def _compare(
    base: Statistics, tuned: Statistics, aggregate: Callable[[Sequence[float]], float], seed: int
) -> Comparison:
    lift = _score(statistics.bootstrap_lift(base, tuned, aggregate, seed=seed))
    p_value = statistics.permutation_p_value(base, tuned, aggregate, seed=seed)
    verdict = _verdict(lift, 0.0) if p_value < MAX_P_VALUE else "no difference shown"
    return Comparison(lift=lift, p_value=p_value, verdict=verdict)


def _published(member: MemberRecord, metrics: Sequence[MetricResult]) -> tuple[PublishedComparison, ...]:
    """Against each published score, on their own measure where the task has it; none where no measure is theirs."""
    published = member.published
    if published is None:
        return ()
    theirs = [result for result in metrics if result.metric.endswith(_PUBLISHED_SUFFIX)]
    comparable = next((result for result in (*theirs, *metrics) if _measures_like(result.metric, published)), None)
    if comparable is None:
        return ()
    score = comparable.scores[ADAPTER]
    known = (("mistral_7b", published.mistral_7b), ("gpt_4", published.gpt_4))
    return tuple(
        PublishedComparison(contender=name, metric=comparable.metric, score=value, verdict=_verdict(score, value))
        for name, value in known
        if value is not None
    )


def _measures_like(metric: str, published: PublishedScores) -> bool:
    return metric.endswith(_PUBLISHED_SUFFIX) or metric == published.metric


def _verdict(score: Score, other: float) -> Verdict:
    if score.low > other:
        return "beats"
    return "loses to" if score.high < other else "no difference shown"


def _score(estimate: Estimate) -> Score:
    return Score(value=estimate.value, low=estimate.low, high=estimate.high)
