"""Two contenders that learn nothing: the most frequent answer of train, and that of its most similar example.

What they reach says how much of a task is its label shares, and how much is looking things up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

Keys = npt.NDArray[np.uint64]
Hashes = npt.NDArray[np.uint32]
Owners = npt.NDArray[np.int32]
Weights = npt.NDArray[np.float32]

NGRAM_CHARS = (3, 4, 5)
MAX_TEXTS = 20_000
# At most 2.5 gigabytes while the index is made.
MAX_TEXT_CHARS, MAX_ALL_CHARS = 4_000, 12_000_000
_NUM_AT_ONCE = 1_000
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
        grams, owners, weights = _ngrams([text[: self._max_chars] for text in texts[:MAX_TEXTS]])
        # Postings: for the g-th known n-gram, the texts that have it stand at starts[g] to starts[g + 1].
        starts, counts = _runs(grams)
        self._grams, self._owners = grams[starts], owners
        self._starts: Ints = np.append(starts, len(grams))
        self._idf: Weights = (np.log((1 + self._num_texts) / (1 + counts)) + 1).astype(np.float32)
        self._weights = weights * np.repeat(self._idf, counts)
        lengths = np.sqrt(np.bincount(owners, self._weights**2, minlength=self._num_texts))
        self._weights /= np.maximum(lengths, np.finfo(np.float32).tiny).astype(np.float32)[owners]

    def find(self, text: str) -> int:
        """The index of the nearest text; of equally near ones, and where nothing is shared, the first."""
        grams, _, weights = _ngrams([text[: self._max_chars]])
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


def _ngrams(texts: Sequence[str]) -> tuple[Hashes, Owners, Weights]:
    """Every n-gram of every text once, in order of their hashes: the hash, the text's index, and 1 + ln(how often)."""
    parts = [_hashes(texts, first) for first in range(0, len(texts), _NUM_AT_ONCE)]
    keys = np.concatenate([np.zeros(0, np.uint64), *parts])
    del parts
    keys.sort()
    starts, counts = _runs(keys)
    weight_of = 1 + np.log(np.arange(1, 1 + counts.max(initial=0)))
    weights = weight_of.astype(np.float32)[counts - 1]
    del counts
    keys = keys[starts]
    del starts
    return (keys >> np.uint64(32)).astype(np.uint32), (keys & np.uint64(0xFFFFFFFF)).astype(np.int32), weights


def _hashes(texts: Sequence[str], first: int) -> Keys:
    """Every n-gram of some texts, as often as it occurs: its hash in the high 32 bits, its text's index in the low."""
    folded = [f" {' '.join(text.casefold().split())} " for text in texts[first : first + _NUM_AT_ONCE]]
    codes = np.frombuffer("".join(folded).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    owners = np.repeat(np.arange(first, first + len(folded), dtype=np.uint64), [len(text) for text in folded])
    hashes = []
    for size in NGRAM_CHARS:
        num_windows = max(0, len(codes) - size + 1)
        value = np.full(num_windows, size, np.uint64)
        for offset in range(size):
            value = (value ^ codes[offset : offset + num_windows]) * _HASH_FACTOR
            value ^= value >> np.uint64(29)
        is_within_one = owners[:num_windows] == owners[len(codes) - num_windows :]
        hashes.append((value >> np.uint64(32) << np.uint64(32) | owners[:num_windows])[is_within_one])
    return np.concatenate(hashes)


def _runs(ordered: Keys | Hashes) -> tuple[Ints, Ints]:
    """Where each run of equal values begins, and how long it is."""
    is_first = np.ones(len(ordered), bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(is_first)
    return starts, np.diff(starts, append=len(ordered))


def _ranges(starts: Ints, ends: Ints) -> Ints:
    """starts[0] .. ends[0] - 1, then starts[1] .. ends[1] - 1, and so on."""
    lengths = ends - starts
    offsets = np.repeat(starts - np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)[:-1]]), lengths)
    return np.asarray(offsets + np.arange(int(lengths.sum())), dtype=np.int64)
