"""From raw answers to scores, intervals and what may be said of them (`results.json`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from atoll.config.task import PUBLISHED_NAMES, PublishedScores
from atoll.errors import DataError
from atoll.evaluation import statistics
from atoll.evaluation.advice import Advice, advise
from atoll.evaluation.forgetting import Forgetting, score_generality
from atoll.evaluation.outputs import (
    ADAPTER,
    BASE,
    ContenderKind,
    ContenderRecord,
    MemberRecord,
    Output,
    Part,
    RunRecord,
    read_outputs,
    read_run,
)
from atoll.evaluation.scores import MAX_P_VALUE, MetricResult, Verdict, example_statistics, score_metric, verdict_of
from atoll.evaluation.statistics import Statistics
from atoll.evaluation.transfer import Transfer, score_transfer
from atoll.tasks.metrics import find_metric

Outputs = Mapping[str, Sequence[Output]]
"""A member's answers by contender."""
Tables = Mapping[str, Mapping[str, Statistics]]
"""Per-example statistics by metric, then by contender."""
OnMember = Callable[[MemberRecord, Outputs, Tables], object]

_PUBLISHED_SUFFIX = "_as_published"


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
    """All that is known of one adapter on its task; the first of `metrics` is the task's score.

    num_unfinished: answers that ended at the task's limit of new tokens. num_outside_labels: answers that are none of
    the task's labels; none for a task without a closed set of them.
    """

    name: str
    adapter_id: str
    task: str
    category: str
    num_examples: int
    num_cut_prompts: int
    contenders: tuple[ContenderRecord, ...]
    num_unfinished: dict[str, int]
    num_outside_labels: dict[str, int]
    metrics: tuple[MetricResult, ...]
    advice: Advice
    published: PublishedScores | None
    published_comparisons: tuple[PublishedComparison, ...]
    failures: tuple[Failure, ...]

    @property
    def primary(self) -> MetricResult:
        return self.metrics[0]


class FleetClaim(Part):
    """On how many tasks the adapters beat one contender, corrected for asking so often.

    p_values: of each member that has this contender, by name, after Holm. An adapter is among `beats` (or `loses`) only
    if its lift's interval lies above (below) 0 and this p-value is below the level too, so that with 95 % probability
    no name stands there by chance.
    """

    contender: str
    p_values: dict[str, float]
    beats: tuple[str, ...]
    loses: tuple[str, ...]


class StatisticsRecord(Part):
    """How intervals and p-values were made."""

    confidence: float = statistics.CONFIDENCE
    num_resamples: int = statistics.NUM_RESAMPLES
    num_permutations: int = statistics.NUM_PERMUTATIONS
    max_p_value: float = MAX_P_VALUE
    seed: int


class Results(Part):
    """The whole of results.json."""

    format_version: Literal[2] = 2
    members: tuple[MemberResult, ...]
    claims: tuple[FleetClaim, ...]
    forgetting: Forgetting | None
    transfer: Transfer | None
    statistics: StatisticsRecord
    run: RunRecord

    @property
    def contenders(self) -> tuple[str, ...]:
        """Every contender of any member: the base, the others in the order in which they first come, the adapter."""
        names = dict.fromkeys(name for member in self.members for name in member.primary.scores)
        return (BASE, *(name for name in names if name not in (BASE, ADAPTER)), ADAPTER)


def score_run(folder: Path, on_member: OnMember = lambda member, outputs, tables: None) -> Results:
    """Score the raw answers in an evaluation's folder; equal files give equal results.

    on_member gets each member with its answers and their statistics, for whoever shows single examples. Raises NotFound
    or DataError for files that are missing or damaged.
    """
    run = read_run(folder)
    members = []
    for member in run.members:
        outputs = read_outputs(folder, member)
        tables = example_tables(member, outputs)
        members.append(score_member(member, outputs, tables, run.seed))
        on_member(member, outputs, tables)
    return Results(
        members=tuple(members),
        claims=fleet_claims(members),
        forgetting=score_generality(folder, run, run.seed),
        transfer=score_transfer(folder, run),
        statistics=StatisticsRecord(seed=run.seed),
        run=run,
    )


def example_tables(member: MemberRecord, outputs: Outputs) -> Tables:
    """The statistics of every answer, by metric and contender.

    Raises DataError where the contenders have not answered the same examples, ConfigError for an unknown metric.
    """
    _check_same_examples(member, outputs)
    metrics = [find_metric(name, where=member.task) for name in member.metrics]
    return {
        metric.name: {name: example_statistics(metric, answers) for name, answers in outputs.items()}
        for metric in metrics
    }


def score_member(member: MemberRecord, outputs: Outputs, tables: Tables, seed: int) -> MemberResult:
    """Score one member from its contenders' answers and their statistics. Raises DataError."""
    metrics = tuple(score_metric(find_metric(name), per_example, seed) for name, per_example in tables.items())
    contenders = _contenders(member, outputs)
    kinds = {contender.name: contender.kind for contender in contenders}
    return MemberResult(
        name=member.name,
        adapter_id=member.adapter_id,
        task=member.task,
        category=member.category,
        num_examples=member.num_examples,
        num_cut_prompts=sum(output.num_cut_tokens > 0 for output in outputs[ADAPTER]),
        contenders=contenders,
        num_unfinished={
            name: sum(answer.finish_reason == "length" for answer in answers) for name, answers in outputs.items()
        },
        num_outside_labels=_num_outside_labels(member, outputs),
        metrics=metrics,
        advice=advise(metrics[0], kinds, member.num_examples),
        published=member.published,
        published_comparisons=_published(member, metrics),
        failures=tuple(
            Failure(contender=name, example_id=answer.example_id, error=answer.error)
            for name, answers in outputs.items()
            for answer in answers
            if answer.error is not None
        ),
    )


def fleet_claims(members: Sequence[MemberResult]) -> tuple[FleetClaim, ...]:
    """One claim for each contender that the adapters were compared with, over each task's first metric."""
    names = dict.fromkeys(name for member in members for name in member.primary.against)
    claims = []
    for name in names:
        compared = {member.name: member.primary.against[name] for member in members if name in member.primary.against}
        adjusted = statistics.holm([comparison.p_value for comparison in compared.values()])
        p_values = {member: round(p_value, 10) for member, p_value in zip(compared, adjusted, strict=True)}
        sure = [member for member, p_value in p_values.items() if p_value < MAX_P_VALUE]
        beats = tuple(member for member in sure if compared[member].verdict == "beats")
        loses = tuple(member for member in sure if compared[member].verdict == "loses to")
        claims.append(FleetClaim(contender=name, p_values=p_values, beats=beats, loses=loses))
    return tuple(claims)


def _check_same_examples(member: MemberRecord, outputs: Outputs) -> None:
    """Pairing is by place, so that all must have answered the same examples in one order."""
    expected = [output.example_id for output in outputs.get(ADAPTER, ())]
    for name in dict.fromkeys((BASE, *outputs)):
        if not expected or [output.example_id for output in outputs.get(name, ())] != expected:
            raise DataError(
                f"{name} and {ADAPTER} have not answered the same examples",
                where=f"{member.name} in raw/",
                mend="run `atoll eval` again",
            )


def _contenders(member: MemberRecord, outputs: Outputs) -> tuple[ContenderRecord, ...]:
    """The record of everybody who answered, in the order of the answers. Raises DataError for one without a record."""
    own: dict[str, ContenderKind] = {BASE: "base", ADAPTER: "adapter"}
    known = {name: ContenderRecord(name=name, kind=kind) for name, kind in own.items()}
    known |= {contender.name: contender for contender in member.contenders}
    for name in outputs:
        if name not in known:
            where = f"{member.name} in raw/run.json"
            raise DataError(f"there is no record of the contender {name!r}", where=where, mend="run `atoll eval` again")
    return tuple(known[name] for name in outputs)


def _num_outside_labels(member: MemberRecord, outputs: Outputs) -> dict[str, int]:
    """Folded as the metric `accuracy` folds an answer, so that what is counted here can score nothing there."""
    if member.labels is None:
        return {}
    accuracy = find_metric("accuracy")
    numbers = {}
    for name, answers in outputs.items():
        given = Counter(answer.prediction for answer in answers if not answer.has_failed)
        numbers[name] = sum(
            number
            for prediction, number in given.items()
            if not any(accuracy.score([(prediction, label)]) for label in member.labels)
        )
    return numbers


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
    return tuple(
        PublishedComparison(contender=name, metric=comparable.metric, score=value, verdict=verdict_of(score, value))
        for name in PUBLISHED_NAMES
        if (value := getattr(published, name)) is not None
    )


def _measures_like(metric: str, published: PublishedScores) -> bool:
    return metric.endswith(_PUBLISHED_SUFFIX) or metric == published.metric
