"""The metrics that tasks name: per-example statistics, and the score that their sums make.

A metric's scores lie between 0 and 1, higher is better. A request that failed is scored as the empty answer, which no
metric rewards. Names that end in `_published` repeat the measure of LoRA Land's evaluation code, faults included,
beside ours; they serve comparison with published scores only.
"""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from atoll.config.explain import did_you_mean
from atoll.errors import ConfigError
from atoll.tasks.sql_execution import same_result

_LORA_LAND = "LoRA Land, arXiv 2405.00732, evaluation code github.com/predibase/lora_bakeoff"
_EDGE_MARKS = " \t\n.,;:!?\"'`*“”‘’«»"
_MAX_ANSWER_CHARS = 20_000  # more than any answer here needs; bounds the parser's work and depth


@dataclass(frozen=True)
class Metric:
    """How answers to a task are scored.

    stats: (prediction, reference) -> a tuple of fixed length. aggregate: the sums of these tuples over the examples
    -> the score, so that means and micro averages are resampled alike. source: where the measure is defined.
    """

    name: str
    stats: Callable[[str, str], tuple[float, ...]]
    aggregate: Callable[[Sequence[float]], float]
    source: str

    def score(self, pairs: Iterable[tuple[str, str]]) -> float:
        """The score of (prediction, reference) pairs, of which there is at least one."""
        return self.aggregate([sum(column) for column in zip(*(self.stats(*pair) for pair in pairs), strict=True)])


def find_metric(name: str, *, where: str | None = None) -> Metric:
    """The metric of that name. Raises ConfigError."""
    if name in METRICS:
        return METRICS[name]
    close = did_you_mean(name, METRICS)
    mend = f"write `{close}`" if close else "choose one of " + ", ".join(sorted(METRICS))
    raise ConfigError(f"there is no metric named {name!r}", where=where, mend=mend)


def mean(sums: Sequence[float]) -> float:
    """The score of a metric whose statistics are (points, 1)."""
    return sums[0] / sums[1]


def f1(sums: Sequence[float]) -> float:
    """Micro-averaged F1 of (true positives, false positives, false negatives); 1 where nothing was to be found."""
    true_positives, false_positives, false_negatives = sums
    total = 2 * true_positives + false_positives + false_negatives
    return 2 * true_positives / total if total else 1.0


def normalise(text: str) -> str:
    """Fold what does not change an answer: case, Unicode compatibility forms, runs of white space, marks around it."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.strip(_EDGE_MARKS) or folded


def accuracy(prediction: str, reference: str) -> tuple[float, ...]:
    """(1 if the answers are equal after `normalise`, 1). Nothing is searched inside a longer answer."""
    return float(normalise(prediction) == normalise(reference)), 1.0


def exact_match(prediction: str, reference: str) -> tuple[float, ...]:
    """(1 if the answers are equal but for white space around them, 1)."""
    return float(prediction.strip() == reference.strip()), 1.0


def rouge_l(prediction: str, reference: str) -> tuple[float, ...]:
    """(F of the longest common subsequence of words, 1); words are runs of a-z and 0-9 in lower case, not stemmed.

    Equal to `rougeL` F of the package rouge-score, and to torchmetrics' ROUGEScore, which LoRA Land used. As there,
    other letters separate words (`café` is `caf`), and a text without any word scores 0.
    """
    predicted, expected = _rouge_words(prediction), _rouge_words(reference)
    common = _lcs_length(predicted, expected)
    return (2 * common / (len(predicted) + len(expected)) if common else 0.0), 1.0


def _rouge_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _lcs_length(left: Sequence[str], right: Sequence[str]) -> int:
    """The length of the longest common subsequence; time len(left) x len(right), memory len(right)."""
    row = [0] * (len(right) + 1)
    for item in left:
        diagonal = 0
        for index, other in enumerate(right, start=1):
            above = row[index]
            row[index] = diagonal + 1 if item == other else max(above, row[index - 1])
            diagonal = above
    return row[-1]


def entity_f1(prediction: str, reference: str) -> tuple[float, ...]:
    """(true positives, false positives, false negatives) over (kind, entity) pairs, repeated ones counted.

    Both texts are dictionaries of lists, JSON or Python, as in conllpp and bc5cdr; prose around the dictionary is
    forgiven. A prediction without one finds nothing and counts one false positive, so that it is worse than the right
    answer even where nothing was to be found.
    """
    expected = _entities(reference) or Counter()
    predicted = _entities(prediction)
    if predicted is None:
        return 0.0, 1.0, float(expected.total())
    common = (predicted & expected).total()
    return float(common), float(predicted.total() - common), float(expected.total() - common)


def _entities(text: str) -> Counter[tuple[str, str]] | None:
    """Each (kind, entity) of the dictionary in `text` with its count; None if there is no dictionary."""
    mapping = _parse_mapping(text[:_MAX_ANSWER_CHARS])
    if mapping is None:
        return None
    entities: Counter[tuple[str, str]] = Counter()
    for kind, values in mapping.items():
        for value in values if isinstance(values, list | tuple) else [values]:
            entities[normalise(str(kind)), " ".join(str(value).split())] += 1
    return entities


def _parse_mapping(text: str) -> dict[Any, Any] | None:
    start, stop = text.find("{"), text.rfind("}") + 1
    if start < 0 or stop <= start:
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text[start:stop])
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # all that these two raise on bad text
            continue
        if isinstance(value, dict):
            return value
    return None


def sql_execution(prediction: str, reference: str) -> tuple[float, ...]:
    """(1 if both queries give the same rows on every database of the task `sql`, 1). Raises DataError."""
    return float(same_result(prediction, reference)), 1.0


def accuracy_flex_published(prediction: str, reference: str) -> tuple[float, ...]:
    """(1 if both texts hold the same truth value, 1), the first of these words found anywhere in a text deciding.

    LoRA Land's `binary_accuracy_flex`. It reads `0 (not 1)` as true and `unknown` as false.
    """
    predicted = _published_truth(prediction)
    return float(predicted is not None and predicted == _published_truth(reference)), 1.0


def _published_truth(text: str) -> bool | None:
    words = ("1", "0", "yes", "no", "true", "false", "positive", "negative")
    found = next((index for index, word in enumerate(words) if word in text.lower()), None)
    return None if found is None else found % 2 == 0


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", accuracy, mean, "exact match after folding case, white space and marks around the answer"),
        Metric("exact_match", exact_match, mean, "equality but for white space around the answer"),
        Metric("rouge_l", rouge_l, mean, "Lin 2004, ROUGE; mean of the examples' F; equal to rouge-score 0.1.2"),
        Metric("entity_f1", entity_f1, f1, "Tjong Kim Sang and De Meulder 2003; micro-averaged over kinds"),
        Metric("sql_execution", sql_execution, mean, "Zhong et al. 2020, Semantic Evaluation for Text-to-SQL"),
        Metric("accuracy_flex_published", accuracy_flex_published, mean, _LORA_LAND + ", binary_accuracy_flex"),
    )
}
