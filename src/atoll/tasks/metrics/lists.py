"""Metrics of lists: entities by kind, sets of labels, and answers of which any one will do."""

from __future__ import annotations

import ast
import json
import re
import string
from collections import Counter
from typing import Any

from atoll.errors import DataError
from atoll.tasks.metrics.metric import MAX_ANSWER_CHARS, Stats
from atoll.tasks.metrics.text import normalise

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def entity_f1(prediction: str, reference: str) -> Stats:
    """(true positives, false positives, false negatives) over (kind, entity) pairs, repeated ones counted.

    Both texts are dictionaries of lists, JSON or Python, as in conllpp and bc5cdr; prose around the dictionary is
    forgiven. A prediction without one finds nothing and counts one false positive, so that it is worse than the right
    answer even where nothing was to be found.
    """
    expected = _entities(reference) or Counter()
    predicted = _entities(prediction)
    if predicted is None:
        return 0.0, 1.0, float(expected.total())
    return _overlap(predicted, expected)


def label_set_f1(prediction: str, reference: str) -> Stats:
    """(true positives, false positives, false negatives) over the labels of an answer, separated by commas or lines.

    Order and repetition do not matter. An empty prediction counts one false positive where a label was to be found, as
    it is worth no more than a wrong one.
    """
    expected, predicted = _labels(reference), _labels(prediction)
    if not predicted and expected:
        return 0.0, 1.0, float(expected.total())
    return _overlap(predicted, expected)


def drop_f1(prediction: str, _reference: str, answers: str) -> Stats:
    """(the best F1 of the words over the accepted `answers`, a JSON list of texts, 1). Raises DataError.

    As DROP's own evaluation: case, marks and articles are folded, words are counted as bags, and a number that differs
    makes an answer wrong. Unlike there an answer of several spans is one bag, as the data joins them.
    """
    given = _bag(prediction)
    return max(_bag_f1(given, _bag(answer)) for answer in text_list(answers, "answers")), 1.0


def drop_exact(prediction: str, _reference: str, answers: str) -> Stats:
    """(1 if the words are, in any order, those of one of the accepted `answers`, 1). Raises DataError."""
    given = _bag(prediction)
    return float(any(given == _bag(answer) for answer in text_list(answers, "answers"))), 1.0


def text_list(text: str, column: str) -> list[str]:
    """The texts of a column that holds a JSON list of at least one. Raises DataError."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or not values:
        mend = 'write a JSON list of texts, for example ["one answer", "another"]'
        raise DataError(f"the column `{column}` holds no list of texts", where=text[:80], mend=mend)
    return [str(value) for value in values]


def _overlap(predicted: Counter[Any], expected: Counter[Any]) -> Stats:
    common = (predicted & expected).total()
    return float(common), float(predicted.total() - common), float(expected.total() - common)


def _entities(text: str) -> Counter[tuple[str, str]] | None:
    """Each (kind, entity) of the dictionary in `text` with its count; None if there is no dictionary."""
    mapping = _parse_mapping(text[:MAX_ANSWER_CHARS])
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


def _labels(text: str) -> Counter[str]:
    parts = (normalise(part) for part in re.split(r"[,;\n]", text[:MAX_ANSWER_CHARS]))
    return Counter(dict.fromkeys((part for part in parts if part), 1))


def _bag(text: str) -> frozenset[str]:
    """The words of an answer as DROP's evaluation folds them: marks go, articles go, numbers are written alike."""
    words = set()
    for part in re.split(r"[\s-]+", text[:MAX_ANSWER_CHARS].lower()):
        word = part if _number(part) is not None else "".join(c for c in part if c not in string.punctuation)
        word = " ".join(_ARTICLES.sub(" ", word).split())
        value = _number(word)
        words.add(word if value is None else str(value))
    return frozenset(words - {""})


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def _bag_f1(given: frozenset[str], expected: frozenset[str]) -> float:
    numbers = {word for word in expected if _number(word) is not None}
    if numbers and not numbers & given:
        return 0.0
    common = len(given & expected)
    return 2 * common / (len(given) + len(expected)) if common else 0.0
