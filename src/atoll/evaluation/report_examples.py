"""The examples that report.html shows of each task, with the answers of all contenders and how their words differ."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from atoll.evaluation.outputs import ADAPTER, BASE, MemberRecord, Output
from atoll.evaluation.results import Outputs, Tables
from atoll.evaluation.word_diff import Span, word_diff
from atoll.tasks.metrics import find_metric

MAX_OF_TASK, MIN_OF_TASK = 30, 6
MAX_OF_REPORT = 600
_MAX_CHARS = 1_200  # of a text; what is cut is told
_MAX_WORDS = 150  # the comparison's work grows with their square
_CUT = " … (cut)"


@dataclass(frozen=True)
class ShownAnswer:
    """One contender's answer. score: of this example alone, None where the metric has no such thing."""

    contender: str
    score: float | None
    spans: tuple[Span, ...]
    error: str | None


@dataclass(frozen=True)
class ShownExample:
    """One example. why: what it was picked for; inputs: the task's input columns, none where they were not kept."""

    example_id: str
    why: Literal["worst", "best", "random"]
    inputs: dict[str, str]
    reference: str
    answers: tuple[ShownAnswer, ...]


def shown_examples(
    member: MemberRecord,
    outputs: Outputs,
    tables: Tables,
    inputs: Mapping[str, Mapping[str, str]],
    *,
    num_members: int,
    seed: int,
) -> list[ShownExample]:
    """A third each of the adapter's worst, its best and random ones; as many as a report of so many members has room.

    Among equally bad ones those come first where the base was better, among equally good ones those where it was worse.
    """
    scores = _example_scores(tables)
    answers = outputs[ADAPTER]
    num_third = min(MAX_OF_TASK, max(MIN_OF_TASK, MAX_OF_REPORT // num_members)) // 3
    why: dict[int, Literal["worst", "best", "random"]] = {}
    if scores is not None:
        adapter, base = scores[ADAPTER], scores[BASE]
        by_score = sorted(range(len(answers)), key=lambda i: (adapter[i], adapter[i] - base[i]))
        why = dict.fromkeys(by_score[:num_third], "worst")
        why |= dict.fromkeys([i for i in reversed(by_score) if i not in why][:num_third], "best")
    rest = [i for i in range(len(answers)) if i not in why]
    picked = random.Random(f"{seed} {member.name}").sample(rest, min(num_third, len(rest)))
    why |= dict.fromkeys(sorted(picked), "random")
    return [
        ShownExample(
            example_id=answers[index].example_id,
            why=reason,
            inputs={name: _fitting(text) for name, text in inputs.get(answers[index].example_id, {}).items()},
            reference=_fitting(answers[index].reference),
            answers=tuple(
                _shown(name, given[index], None if scores is None else scores[name][index])
                for name, given in outputs.items()
            ),
        )
        for index, reason in why.items()
    ]


def _fitting(text: str) -> str:
    """`text` cut to what a page has room for."""
    return text[:_MAX_CHARS] + (_CUT if len(text) > _MAX_CHARS else "")


def _shown(contender: str, output: Output, score: float | None) -> ShownAnswer:
    spans = (
        ()
        if output.has_failed
        else word_diff(_fitting(output.reference), _fitting(output.prediction), max_words=_MAX_WORDS)
    )
    return ShownAnswer(contender=contender, score=score, spans=spans, error=output.error)


def _example_scores(tables: Tables) -> dict[str, list[float]] | None:
    """Each answer's score alone, by the task's first metric that is not one of order; None where it has no other."""
    metric = next((metric for metric in map(find_metric, tables) if metric.rank is None), None)
    if metric is None:
        return None
    aggregate = metric.aggregate
    return {name: [round(aggregate(row.tolist()), 10) for row in rows] for name, rows in tables[metric.name].items()}
