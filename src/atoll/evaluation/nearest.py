"""Two contenders that learn nothing: the most frequent answer of train, and that of its most similar example.

What they reach says how much of a task is its label shares, and how much is looking things up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

Hashes = npt.NDArray[np.uint32]
Weights = npt.NDArray[np.float32]

NGRAM_CHARS = (3, 4, 5)
MAX_TEXTS = 20_000
# Less than a gigabyte while the index is made.
MAX_TEXT_CHARS, MAX_ALL_CHARS = 4_000, 12_000_000
_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: Knuth, TAOCP 3, 6.4


def majority(targets: Sequence[str]) -> str:
    """The most frequent of `targets`; of equally frequent ones the first in the alphabet."""
    counts = Counter(targets)
    return min(counts, key=lambda target: (-counts[target], target))


class NearestText:
    """Finds the text that shares most with another: cosine between TF-IDF vectors of character n-grams.

    A text's weights are (1 + ln tf) * (ln((1 + n) / (1 + df)) + 1), divided by their length; case and runs of white
    space do not count. Source of the weights: Manning, Raghavan and Schütze 2008, section 6.4; smoothed idf as in
    scikit-learn. Only the first 20,000 texts are read, and of each the first 4,000 characters, or as many as make 12
    million for all of them.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._num_texts = min(len(texts), MAX_TEXTS)
        self._max_chars = min(MAX_TEXT_CHARS, MAX_ALL_CHARS // max(1, self._num_texts))
        counted = [_ngrams(text[: self._max_chars]) for text in texts[:MAX_TEXTS]]
        grams = np.concatenate([np.zeros(0, np.uint32), *(found for found, _ in counted)])
        weights = np.concatenate([np.zeros(0, np.float32), *(weight for _, weight in counted)])
        owners = np.repeat(np.arange(self._num_texts, dtype=np.int32), [len(found) for found, _ in counted])
        del counted
        # Postings: for the g-th known n-gram, the texts that have it stand at starts[g] to starts[g + 1].
        order = np.argsort(grams, kind="stable")
        self._grams, counts = np.unique(grams, return_counts=True)
        self._starts: Ints = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        self._idf: Weights = (np.log((1 + self._num_texts) / (1 + counts)) + 1).astype(np.float32)
        self._owners = owners[order]
        self._weights = weights[order] * np.repeat(self._idf, counts)
        lengths = np.sqrt(np.bincount(self._owners, self._weights**2, minlength=self._num_texts))
        self._weights /= np.maximum(lengths, np.finfo(np.float32).tiny).astype(np.float32)[self._owners]

    def find(self, text: str) -> int:
        """The index of the nearest text; of equally near ones, and where nothing is shared, the first."""
        grams, weights = _ngrams(text[: self._max_chars])
        places = np.searchsorted(self._grams, grams)
        known = places < len(self._grams)
        known[known] = self._grams[places[known]] == grams[known]
        places, weights = places[known], weights[known]
        weights = weights * self._idf[places]
        starts, ends = self._starts[places], self._starts[places + 1]
        postings = _ranges(starts, ends)
        shares = self._weights[postings] * np.repeat(weights, ends - starts)
        likeness = np.bincount(self._owners[postings], shares, minlength=self._num_texts)
        # A relative precision of float32 is all that the sums have, and equal texts must stay equal.
        return int(np.argmax(np.round(likeness, 4)))


def _ngrams(text: str) -> tuple[Hashes, Weights]:
    """The n-grams of a text as hashes, in order, and 1 + ln(how often)."""
    folded = f" {' '.join(text.casefold().split())} "
    codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    hashes = []
    for size in NGRAM_CHARS:
        if len(codes) >= size:
            value = np.full(len(codes) - size + 1, size, np.uint64)
            for offset in range(size):
                value = (value ^ codes[offset : len(codes) - size + 1 + offset]) * _HASH_FACTOR
                value ^= value >> np.uint64(29)
            hashes.append((value >> np.uint64(32)).astype(np.uint32))
    found, counts = np.unique(np.concatenate([np.zeros(0, np.uint32), *hashes]), return_counts=True)
    return found, (1 + np.log(counts)).astype(np.float32)


def _ranges(starts: Ints, ends: Ints) -> Ints:
    """starts[0] .. ends[0] - 1, then starts[1] .. ends[1] - 1, and so on."""
    lengths = ends - starts
    offsets = np.repeat(starts - np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)[:-1]]), lengths)
    return np.asarray(offsets + np.arange(int(lengths.sum())), dtype=np.int64)
