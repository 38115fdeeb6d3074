"""What a metric is: per-example statistics, and the score that their sums make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from atoll.errors import DataError

LORA_LAND = "LoRA Land, arXiv 2405.00732, evaluation code github.com/predibase/lora_bakeoff"
MAX_ANSWER_CHARS = 20_000  # more than any answer here needs; bounds the work that a text can cause

Stats = tuple[float, ...]
_NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


class Answer(NamedTuple):
    """An answer, the right one, and the further columns of the example that metrics read."""

    prediction: str
    reference: str
    columns: Mapping[str, str] = _NO_COLUMNS


@dataclass(frozen=True)
class Metric:
    """How answers to a task are scored.

    measure: (prediction, reference, then the text of each of `columns`) -> statistics of a fixed length, the first of
    which is the credit. aggregate: the sums of these over the examples -> the score, so that means and micro averages
    are resampled alike. source: where the measure is defined. columns: what it reads of an example beside the target.
    rank: for measures of order, turns the statistics of all examples into ones that can be summed.
    """

    name: str
    measure: Callable[..., Stats]
    aggregate: Callable[[Sequence[float]], float]
    source: str
    columns: tuple[str, ...] = ()
    rank: Callable[[Sequence[Stats]], list[Stats]] | None = None

    def stats(self, prediction: str, reference: str, columns: Mapping[str, str] = _NO_COLUMNS) -> Stats:
        """The statistics of one answer. Raises DataError when a column that the metric reads is missing."""
        for column in self.columns:
            if column not in columns:
                mend = f"give the test split a column `{column}`, or take the metric out of the task"
                raise DataError(f"the metric {self.name} needs the column `{column}`", mend=mend)
        return self.measure(prediction, reference, *(columns[column] for column in self.columns))

    def table(self, answers: Iterable[Answer]) -> list[Stats]:
        """The statistics of all answers, which `aggregate` makes a score of once they are summed. Raises DataError."""
        rows = [self.stats(*answer) for answer in answers]
        return rows if self.rank is None else self.rank(rows)

    def score(self, answers: Iterable[tuple[str, str] | Answer]) -> float:
        """The score of answers, of which there is at least one. Raises DataError as `stats` does."""
        rows = self.table(Answer(*answer) for answer in answers)
        return self.aggregate([sum(column) for column in zip(*rows, strict=True)])


def mean(sums: Sequence[float]) -> float:
    """The score of a metric whose statistics are (points, 1)."""
    return sums[0] / sums[1]


def f1(sums: Sequence[float]) -> float:
    """Micro-averaged F1 of (true positives, false positives, false negatives); 1 where nothing was to be found."""
    true_positives, false_positives, false_negatives = sums
    total = 2 * true_positives + false_positives + false_negatives
    return 2 * true_positives / total if total else 1.0
