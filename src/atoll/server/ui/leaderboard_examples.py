"""Single examples of an evaluation: what was asked, what each contender answered, and who was right."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atoll.errors import DataError
from atoll.evaluation.outputs import ADAPTER, BASE, MemberRecord, Output, read_inputs, read_outputs
from atoll.evaluation.word_diff import Span, word_diff
from atoll.tasks.metrics import Answer, Metric, find_metric

PAGE_SIZE = 20
MAX_ANSWERS_BYTES = 64 << 20
_MAX_CACHED = 4
_MAX_DIFF_WORDS = 400
_MAX_SHOWN_CHARS = 6000
# These run programs, which opening a page shall not.
_PROGRAM_METRICS = frozenset({"pass_at_1", "sql_execution", "wikisql_execution"})
_PLAIN_METRIC = "exact_match"

Filter = Literal["all", "wrong", "worse", "better"]
FILTERS: dict[Filter, str] = {
    "all": "all examples",
    "wrong": "adapter is wrong",
    "worse": "adapter worse than the base",
    "better": "adapter better than the base",
}


@dataclass(frozen=True)
class Shown:
    """One contender's answer. score: by the metric alone, from 0 to 1."""

    contender: str
    score: float
    spans: tuple[Span, ...]
    error: str | None
    is_unfinished: bool
    num_new_tokens: int


@dataclass(frozen=True)
class Example:
    """One example with its inputs, where they were kept, and the answers. number: its place in the test set, from 1."""

    number: int
    example_id: str
    inputs: Mapping[str, str]
    reference: str
    answers: tuple[Shown, ...]


@dataclass(frozen=True)
class ExamplePage:
    """One page of the examples that a filter leaves. metric: what scores and filters go by."""

    metric: str
    examples: tuple[Example, ...]
    num_found: int
    page: int
    num_pages: int
    counts: Mapping[Filter, int]


@dataclass(frozen=True)
class _Scored:
    metric: str
    outputs: Mapping[str, Sequence[Output]]
    scores: Mapping[str, Sequence[float]]
    inputs: Mapping[str, Mapping[str, str]]

    def found(self, name: Filter) -> list[int]:
        """The places of the examples that a filter leaves."""
        tuned = self.scores[ADAPTER]
        base = self.scores.get(BASE, tuned)
        pairs = enumerate(zip(tuned, base, strict=True))
        match name:
            case "wrong":
                return [index for index, (score, _) in pairs if score < 1]
            case "worse":
                return [index for index, (score, other) in pairs if score < other]
            case "better":
                return [index for index, (score, other) in pairs if score > other]
        return list(range(len(tuned)))


class ExampleFiles:
    """Answers on disk with their scores, the latest few kept; who asks for one at a time waits for the one who scores.

    Methods block: call them in threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cached: OrderedDict[tuple[Path, str], Future[_Scored]] = OrderedDict()

    def page(
        self, folder: Path, member: MemberRecord, contenders: Sequence[str], chosen: Filter, page: int
    ) -> ExamplePage:
        """A page of a member's examples, from 1; a page beyond the last is the last. Raises NotFound or DataError."""
        scored = self._scored(folder, member)
        names = [name for name in contenders if name in scored.outputs] or [ADAPTER]
        found = scored.found(chosen)
        num_pages = max(1, -(-len(found) // PAGE_SIZE))
        page = min(max(1, page), num_pages)
        places = found[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        return ExamplePage(
            metric=scored.metric,
            examples=tuple(_example(scored, index, names) for index in places),
            num_found=len(found),
            page=page,
            num_pages=num_pages,
            counts={name: len(scored.found(name)) for name in FILTERS},
        )

    def _scored(self, folder: Path, member: MemberRecord) -> _Scored:
        key = folder, member.name + "".join(member.output_digests.values())
        with self._lock:
            known = self._cached.get(key)
            scored = self._cached.setdefault(key, Future())
            self._cached.move_to_end(key)
            while len(self._cached) > _MAX_CACHED:
                self._cached.popitem(last=False)
        if known is None:
            try:
                scored.set_result(_score(folder, member))
            except BaseException as error:
                with self._lock:
                    self._cached.pop(key, None)
                scored.set_exception(error)
        return scored.result()


def _score(folder: Path, member: MemberRecord) -> _Scored:
    raw = folder / "raw" / member.name
    if raw.is_dir() and sum(path.stat().st_size for path in raw.iterdir()) > MAX_ANSWERS_BYTES:
        raise DataError("the answers are too large for this page", mend=f"read the files in eval/raw/{member.name}")
    outputs = read_outputs(folder, member)
    if ADAPTER not in outputs or len({len(answers) for answers in outputs.values()}) != 1:
        raise DataError("the contenders did not answer the same examples", mend="evaluate again")
    metric = _metric_for(member.metrics[0])
    scores = {name: [_score_one(metric, output) for output in answers] for name, answers in outputs.items()}
    return _Scored(metric.name, outputs, scores, read_inputs(folder, member))


def _metric_for(name: str) -> Metric:
    """The task's own metric, or equality where that one ranks all answers, or runs programs."""
    metric = find_metric(name)
    return find_metric(_PLAIN_METRIC) if metric.rank is not None or name in _PROGRAM_METRICS else metric


def _score_one(metric: Metric, output: Output) -> float:
    if output.has_failed:
        return 0.0
    return metric.score([Answer(output.prediction, output.reference, output.columns)])


def _example(scored: _Scored, index: int, names: Sequence[str]) -> Example:
    first = scored.outputs[ADAPTER][index]
    inputs = {name: text[:_MAX_SHOWN_CHARS] for name, text in scored.inputs.get(first.example_id, {}).items()}
    answers = tuple(
        Shown(
            contender=name,
            score=scored.scores[name][index],
            spans=word_diff(
                first.reference[:_MAX_SHOWN_CHARS],
                scored.outputs[name][index].prediction[:_MAX_SHOWN_CHARS],
                max_words=_MAX_DIFF_WORDS,
            ),
            error=scored.outputs[name][index].error,
            is_unfinished=scored.outputs[name][index].finish_reason == "length",
            num_new_tokens=scored.outputs[name][index].num_new_tokens,
        )
        for name in names
    )
    return Example(index + 1, first.example_id, inputs, first.reference[:_MAX_SHOWN_CHARS], answers)
