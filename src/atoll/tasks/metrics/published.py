"""LoRA Land's own measures, faults included, where ours is another; they serve comparison with its scores only.

What each does is told from its evaluation code. Its measures for arc_combined, covid and winogrande are named there
but not written, so these tasks have none here.
"""

from __future__ import annotations

import re

from atoll.tasks.metrics.metric import MAX_ANSWER_CHARS, Stats
from atoll.tasks.metrics.numbers import SCALE
from atoll.tasks.metrics.text import rouge_l

_FLEX_WORDS = ("1", "0", "yes", "no", "true", "false", "positive", "negative")
_FIRST_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})*(?:\.\d+)?")
_LAST_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_CLASSES = (
    "Company", "EducationalInstitution", "Artist", "Athlete", "OfficeHolder", "MeanOfTransportation", "Building",
    "NaturalPlace", "Village", "Animal", "Plant", "Album", "Film", "WrittenWork",
)  # fmt: skip


def accuracy_flex(prediction: str, reference: str) -> Stats:
    """(1 if both texts hold the same truth value, 1), the first of eight words found anywhere in a text deciding.

    It reads `0 (not 1)` as true and `unknown` as false.
    """
    given = _flex_truth(prediction)
    return float(given is not None and given == _flex_truth(reference)), 1.0


def accuracy_digit(prediction: str, reference: str) -> Stats:
    """(1 if the answers are equal or share a digit from 0 to 3, 1): `0, 1, 2, 3` is always right."""
    return _shared_digit(prediction, reference, "0123"), 1.0


def accuracy_mrpc(prediction: str, reference: str) -> Stats:
    """(1 if the answers are equal or share a 1 or a 2, 1), though the labels are 0 and 1."""
    return _shared_digit(prediction, reference, "12"), 1.0


def accuracy_number(prediction: str, reference: str) -> Stats:
    """(1 if the first numbers of both are equal as text, 1): no number equals no number, and `2023` is `202`."""
    given, expected = _FIRST_NUMBER.search(prediction[:MAX_ANSWER_CHARS]), _FIRST_NUMBER.search(reference)
    return float((given and given[0]) == (expected and expected[0])), 1.0


def accuracy_substring(prediction: str, reference: str) -> Stats:
    """(1 if the label stands anywhere in the answer, 1): `not pay bill` is `pay bill`."""
    found = bool(reference) and reference.lower() in prediction.lower()
    return float(found or _equal(prediction, reference)), 1.0


def rouge_class(prediction: str, reference: str) -> Stats:
    """(ROUGE-L F, 1) after a number, counted from 0, has become the class's name."""
    try:
        prediction = _CLASSES[int(prediction)]
    except (ValueError, IndexError):
        return rouge_l(prediction, reference)
    return rouge_l(prediction, reference)


def closeness(prediction: str, reference: str) -> Stats:
    """(1 - |difference| / 5, 1) of the first numbers found; one outside the scale counts as it is if it stands alone.

    A number that stands alone outside the scale can score less than 0; we count that as 0.
    """
    given, expected = _stsb_number(prediction), _stsb_number(reference)
    if given is None or expected is None:
        return 0.0, 1.0
    return max(0.0, 1 - abs(given - expected) / SCALE), 1.0


def gsm8k_number(prediction: str, reference: str) -> Stats:
    """(1 if the last numbers of both are equal, 1): rambling past the answer spoils it."""
    given, expected = _last_number(prediction), _last_number(reference)
    return float(given is not None and given == expected), 1.0


def _equal(prediction: str, reference: str) -> bool:
    """LoRA Land's accuracy: full stops around do not count, spaces do; a number may be written with `.0`."""
    if prediction.strip(".").lower() == reference.strip(".").lower():
        return True
    try:
        return str(float(prediction)) == reference.strip()
    except ValueError:
        return False


def _shared_digit(prediction: str, reference: str, digits: str) -> float:
    shared = any(digit in prediction and digit in reference for digit in digits)
    return float(shared or _equal(prediction, reference))


def _flex_truth(text: str) -> bool | None:
    found = next((index for index, word in enumerate(_FLEX_WORDS) if word in text.lower()), None)
    return None if found is None else found % 2 == 0


def _stsb_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        match = _FIRST_NUMBER.search(text[:MAX_ANSWER_CHARS])
        value = float(match[0].replace(",", "")) if match else SCALE + 1
        return value if value <= SCALE else None
    return value if abs(value) < float("inf") else None


def _last_number(text: str) -> float | None:
    found = _LAST_NUMBER.findall(text[:MAX_ANSWER_CHARS])
    try:
        return float(found[-1].strip("$.").replace(",", "")) if found else None
    except ValueError:
        return None
