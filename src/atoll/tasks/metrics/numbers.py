"""Metrics of numbers: distance on a scale, order, and the last line of a worked solution."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from atoll.tasks.metrics.metric import MAX_ANSWER_CHARS, Stats

SCALE = 5.0  # STS-B's similarities lie between 0 and 5
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_FINAL = re.compile(r"####[ \t]*[$€£]?[ \t]*([+-]?(?:\d[\d,]*)?(?:\.\d+)?)")


def closeness(prediction: str, reference: str) -> Stats:
    """(1 - |difference| / 5, 1) of two numbers from 0 to 5; 0 for an answer that is none. LoRA Land's `1 - MAE / 5`."""
    given, expected = rating(prediction), rating(reference)
    if given is None or expected is None:
        return 0.0, 1.0
    return 1 - abs(given - expected) / SCALE, 1.0


def spearman(prediction: str, reference: str) -> Stats:
    """(number given, number expected); NaN for an answer that is none. `spearman_rows` makes these summable."""
    given, expected = rating(prediction), rating(reference)
    return (math.nan if given is None else given), (0.0 if expected is None else expected)


def spearman_rows(rows: Sequence[Stats]) -> list[Stats]:
    """(product, square, square) of each example's distances from the mean rank among `rows`; ties share a rank.

    An answer that is no number gets the mean rank, so it adds nothing to the correlation and lowers it. Resampled sums
    keep the ranks of the whole set.
    """
    expected = _centred_ranks([row[1] for row in rows])
    answered = [index for index, row in enumerate(rows) if not math.isnan(row[0])]
    given = [0.0] * len(rows)
    for index, rank in zip(answered, _centred_ranks([rows[index][0] for index in answered]), strict=True):
        given[index] = rank
    return [(x * y, x * x, y * y) for x, y in zip(given, expected, strict=True)]


def correlation(sums: Sequence[float]) -> float:
    """Spearman's rank correlation from the sums of `spearman_rows`; an inverted order or none counts as 0."""
    product, given, expected = sums
    norm = math.sqrt(given * expected)
    return min(1.0, max(0.0, product / norm)) if norm else 0.0


def gsm8k_number(prediction: str, reference: str) -> Stats:
    """(1 if the number after the first `####` is the reference's, 1); commas, currency and trailing zeros are folded.

    Cobbe et al. 2021 end every solution so. What follows that number is not looked at, and without `####` there is no
    answer.
    """
    given, expected = _final_number(prediction), _final_number(reference)
    return float(given is not None and given == expected), 1.0


def rating(text: str) -> float | None:
    """The number that an answer begins with, if it lies between 0 and 5."""
    match = _NUMBER.match(text.strip()[:64])
    value = float(match[0]) if match else None
    return value if value is not None and 0 <= value <= SCALE else None


def _final_number(text: str) -> float | None:
    match = _FINAL.search(text[:MAX_ANSWER_CHARS])
    digits = match[1].replace(",", "") if match else ""
    return float(digits) if any(character.isdigit() for character in digits) else None


def _centred_ranks(values: Sequence[float]) -> list[float]:
    """Each value's rank, the mean of its ties, minus the mean rank."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for index in order[start:stop]:
            ranks[index] = (start + stop - 1) / 2 - (len(values) - 1) / 2
        start = stop
    return ranks
