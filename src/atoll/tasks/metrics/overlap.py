"""BLEU and chrF over a whole test set, with one reference or several.

Both are made of counts that are summed over the examples, so a score of resampled examples is exact.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from atoll.tasks.metrics.lists import text_list
from atoll.tasks.metrics.metric import MAX_ANSWER_CHARS, Stats

_MAX_WORDS = 4  # BLEU's longest n-gram
_MAX_CHARS = 6  # chrF's longest n-gram
_BETA = 2.0
# mteval-v13a: marks stand alone, but a full stop or comma inside a number and a dash after letters do not.
_MARKS = re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])")
_SPLITS = (
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def bleu(prediction: str, reference: str) -> Stats:
    """Counts for BLEU-4 of the test set, in the tokens of mteval-v13a, case kept. Equal to sacrebleu's default."""
    return _bleu_counts(prediction, [reference])


def bleu_references(prediction: str, _reference: str, references: str) -> Stats:
    """As `bleu`, against all of `references`, a JSON list of texts. Raises DataError."""
    return _bleu_counts(prediction, text_list(references, "references"))


def bleu_score(sums: Sequence[float]) -> float:
    """BLEU from (matches of 1 to 4 words, n-grams of 1 to 4 words, words given, words of the references).

    An order without a match counts as a half, a quarter, ... of one (sacrebleu's `exp`).
    """
    matches, totals = sums[:_MAX_WORDS], sums[_MAX_WORDS : 2 * _MAX_WORDS]
    num_given, num_expected = sums[2 * _MAX_WORDS :]
    if not any(matches) or not all(totals):
        return 0.0
    smoothing, log_precision = 1.0, 0.0
    for num_matches, total in zip(matches, totals, strict=True):
        if not num_matches:
            smoothing *= 2
        log_precision += math.log((num_matches or 1 / smoothing) / total)
    brevity = min(0.0, 1 - num_expected / num_given)
    return min(1.0, math.exp(brevity + log_precision / _MAX_WORDS))


def chrf(prediction: str, reference: str) -> Stats:
    """Counts for chrF of the test set: character n-grams of up to 6, white space left out, beta 2."""
    return _chrf_counts(prediction, [reference])


def chrf_references(prediction: str, _reference: str, references: str) -> Stats:
    """As `chrf`, against whichever of `references`, a JSON list of texts, comes closest. Raises DataError."""
    return _chrf_counts(prediction, text_list(references, "references"))


def chrf_score(sums: Sequence[float]) -> float:
    """chrF from (matches, n-grams given, n-grams of the reference) of each length; lengths without any are left out."""
    precision = recall = 0.0
    num_lengths = 0
    for start in range(0, 3 * _MAX_CHARS, 3):
        matches, given, expected = sums[start : start + 3]
        if given > 0 and expected > 0:
            num_lengths += 1
            precision += matches / given
            recall += matches / expected
    if not num_lengths or precision + recall == 0:
        return 0.0
    precision, recall = precision / num_lengths, recall / num_lengths
    factor = _BETA**2
    return min(1.0, (1 + factor) * precision * recall / (factor * precision + recall))


def _bleu_counts(prediction: str, references: Sequence[str]) -> Stats:
    words = _words(prediction)
    expected = [_words(reference) for reference in references]
    matches, totals = [], []
    for length in range(1, _MAX_WORDS + 1):
        given = _ngrams(words, length)
        best: Counter[Sequence[str]] = Counter()
        for reference in expected:
            best |= _ngrams(reference, length)
        matches.append(float((given & best).total()))
        totals.append(float(given.total()))
    closest = min((abs(len(reference) - len(words)), len(reference)) for reference in expected)[1]
    return (*matches, *totals, float(len(words)), float(closest))


def _chrf_counts(prediction: str, references: Sequence[str]) -> Stats:
    given = _char_ngrams(prediction)
    counts = [_overlaps(given, _char_ngrams(reference)) for reference in references]
    return max(counts, key=chrf_score)


def _char_ngrams(text: str) -> list[Counter[Sequence[str]]]:
    characters = "".join(text[:MAX_ANSWER_CHARS].split())
    return [_ngrams(characters, length) for length in range(1, _MAX_CHARS + 1)]


def _overlaps(given: Sequence[Counter[Sequence[str]]], expected: Sequence[Counter[Sequence[str]]]) -> Stats:
    """sacrebleu counts n-grams of an answer only where the reference has some of that length."""
    counts: list[float] = []
    for ours, theirs in zip(given, expected, strict=True):
        num_given = float(ours.total()) if theirs else 0.0
        counts += [float((ours & theirs).total()), num_given, float(theirs.total())]
    return tuple(counts)


def _ngrams(items: Sequence[str], length: int) -> Counter[Sequence[str]]:
    key: Callable[[Sequence[str]], Sequence[str]] = str if isinstance(items, str) else tuple
    return Counter(key(items[start : start + length]) for start in range(len(items) - length + 1))


def _words(text: str) -> list[str]:
    """The tokens of mteval-v13a."""
    text = text[:MAX_ANSWER_CHARS].rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = _MARKS.sub(r" \1 ", f" {text} ")
    for pattern, spaced in _SPLITS:
        text = pattern.sub(spaced, text)
    return text.split()
