"""Properties of every metric: bounds, identity, symmetry where it holds, and agreement with rouge-score."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from atoll.tasks.metrics import METRICS

TEXT_METRICS = sorted(set(METRICS) - {"sql_execution"})
words = st.lists(st.sampled_from(["a", "b", "c", "the", "1", "0", "no", "{", "}", "é", "-"]), max_size=12).map(" ".join)
texts = st.one_of(st.text(max_size=60), words)
entity_maps = st.dictionaries(
    st.sampled_from(["person", "location", "B-Chemical"]), st.lists(st.sampled_from(["Ann", "Oslo", "A b"]), max_size=4)
).map(json.dumps)
oracle = RougeScorer(["rougeL"])


@pytest.mark.parametrize("name", TEXT_METRICS)
@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_scores_lie_between_0_and_1(name: str, pairs: list[tuple[str, str]]) -> None:
    metric = METRICS[name]
    assert 0 <= metric.score(pairs) <= 1
    assert len({len(metric.stats(*pair)) for pair in pairs}) == 1


@pytest.mark.parametrize("name", ["accuracy", "exact_match"])
@given(text=texts)
def test_an_equal_answer_is_right(name: str, text: str) -> None:
    assert METRICS[name].score([(text, text)]) == 1


@given(text=texts)
def test_rouge_l_of_an_equal_answer(text: str) -> None:
    has_word = any(character.isascii() and character.isalnum() for character in text.lower())
    assert METRICS["rouge_l"].score([(text, text)]) == float(has_word)


@given(left=entity_maps, right=entity_maps)
def test_entity_f1_of_dictionaries(left: str, right: str) -> None:
    metric = METRICS["entity_f1"]
    assert metric.score([(left, left)]) == 1
    assert metric.score([(left, right)]) == metric.score([(right, left)])


@pytest.mark.parametrize("name", ["accuracy", "exact_match", "rouge_l", "accuracy_flex_published"])
@given(left=texts, right=texts)
def test_symmetry(name: str, left: str, right: str) -> None:
    assert METRICS[name].score([(left, right)]) == METRICS[name].score([(right, left)])


@given(prediction=texts, reference=texts)
def test_rouge_l_equals_rouge_score(prediction: str, reference: str) -> None:
    expected = oracle.score(reference, prediction)["rougeL"].fmeasure
    assert METRICS["rouge_l"].score([(prediction, reference)]) == pytest.approx(expected, abs=1e-12)


@given(text=st.text(max_size=200))
def test_sql_execution_survives_any_text(text: str) -> None:
    assert METRICS["sql_execution"].score([(text, "SELECT name FROM players WHERE age > 30")]) == 0
