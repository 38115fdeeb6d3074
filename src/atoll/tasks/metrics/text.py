"""Equality of short answers, and ROUGE-L."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from atoll.tasks.metrics.metric import MAX_ANSWER_CHARS, Stats

_EDGE_MARKS = " \t\n.,;:!?\"'`*“”‘’«»"
_LEAD = re.compile(r"(?:the |your )?(?:correct |right |best )?(?:answer|label)(?: is)?\s*:?\s*", re.IGNORECASE)


def normalise(text: str) -> str:
    """Fold what does not change an answer: case, Unicode compatibility forms, runs of white space, marks around it."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.strip(_EDGE_MARKS) or folded


def accuracy(prediction: str, reference: str) -> Stats:
    """(1 if the answers are equal after `normalise`, 1). Nothing is searched inside a longer answer."""
    return float(normalise(prediction) == normalise(reference)), 1.0


def exact_match(prediction: str, reference: str) -> Stats:
    """(1 if the answers are equal but for white space around them, 1)."""
    return float(prediction.strip() == reference.strip()), 1.0


def label_match(prediction: str, reference: str) -> Stats:
    """(1 if the answer begins with the label as whole words, 1), so that what follows it does not count.

    `1 (positive)` and `Answer: 1` match 1; `10`, `1.5`, `-1` and `not 1` do not. It tells a model that knows the answer
    from one that also keeps to the form; a label that begins another label's name would match both.
    """
    expected = normalise(reference)
    given = normalise(prediction)
    given = _LEAD.sub("", given, count=1) if _LEAD.match(given) else given
    given = given.lstrip(_EDGE_MARKS + "([{")
    rest = given[len(expected) :]
    starts = bool(expected) and given.startswith(expected)
    return float(starts and not re.match(r"\w|[.,:/-]\w", rest)), 1.0


def rouge_l(prediction: str, reference: str) -> Stats:
    """(F of the longest common subsequence of words, 1); words are runs of a-z and 0-9 in lower case, not stemmed.

    Equal to `rougeL` F of the package rouge-score, and to torchmetrics' ROUGEScore, which LoRA Land used. As there,
    other letters separate words (`café` is `caf`), and a text without any word scores 0.
    """
    predicted, expected = _rouge_words(prediction), _rouge_words(reference)
    common = _lcs_length(predicted, expected)
    return (2 * common / (len(predicted) + len(expected)) if common else 0.0), 1.0


def _rouge_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text[:MAX_ANSWER_CHARS].lower())


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
