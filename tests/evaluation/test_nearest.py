"""The two contenders that learn nothing."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.evaluation import nearest
from atoll.evaluation.nearest import NGRAM_CHARS, NearestText, majority

TEXTS = st.text(alphabet="ab cä", min_size=0, max_size=12)


def reference_likeness(texts: list[str], query: str) -> list[float]:
    """The same cosine, written down as slowly as the formula."""

    def counts(text: str) -> Counter[str]:
        folded = f" {' '.join(text.casefold().split())} "
        return Counter(folded[i : i + n] for n in NGRAM_CHARS for i in range(len(folded) - n + 1))

    counted = [counts(text) for text in texts]
    df = Counter(gram for found in counted for gram in found)

    def weights(found: Counter[str]) -> dict[str, float]:
        return {
            gram: (1 + math.log(number)) * (math.log((1 + len(texts)) / (1 + df[gram])) + 1)
            for gram, number in found.items()
            if gram in df
        }

    asked = weights(counts(query))
    likeness = []
    for found in map(weights, counted):
        norm = math.sqrt(sum(weight**2 for weight in found.values())) or 1.0
        likeness.append(sum(weight * asked.get(gram, 0.0) for gram, weight in found.items()) / norm)
    return likeness


@given(texts=st.lists(TEXTS, min_size=1, max_size=8), query=TEXTS)
def test_the_nearest_text_is_that_of_the_formula(texts: list[str], query: str) -> None:
    likeness = reference_likeness(texts, query)
    assert likeness[NearestText(texts).find(query)] == pytest.approx(max(likeness), rel=1e-4, abs=2e-4)


def test_a_known_text_finds_itself_and_similar_words_their_like() -> None:
    texts = ["How do I reset my password?", "Where is my parcel?", "The invoice is wrong", "Where is my parcel?"]
    index = NearestText(texts)
    assert [index.find(text) for text in texts] == [0, 1, 2, 1]
    assert index.find("PASSWORDS  that I cannot reset") == 0
    assert index.find("parcels have not come") == 1


def test_what_shares_nothing_finds_the_first_and_nothing_breaks_it() -> None:
    index = NearestText(["abc", "def", ""])
    for query in ("", " ", "zzz", "\ud800", "🙂" * 10_000):
        assert 0 <= index.find(query) < 3
    assert index.find("zzz") == 0
    assert NearestText(["", ""]).find("") == 0


def test_many_long_texts_are_read_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "MAX_ALL_CHARS", 40)
    texts = ["same beginning of all, then one", "same beginning of all, then two", "else"]
    assert NearestText(texts).find(texts[1]) == 0
    assert NearestText(texts[1:]).find(texts[1]) == 0
    assert NearestText(texts).find("else") == 2


def test_the_majority_is_the_most_frequent_and_of_equals_the_first_in_the_alphabet() -> None:
    assert majority(["b", "a", "b"]) == "b"
    assert majority(["b", "a", "b", "a"]) == "a"
    assert majority(["x"]) == "x"
