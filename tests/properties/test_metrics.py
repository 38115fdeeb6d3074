"""Properties of every metric: bounds, identity, symmetry where it holds, and agreement with rouge-score."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from atoll.tasks.metrics import METRICS, Answer

# These read what the reference says as a program or as a list, or need further columns of the example.
OWN_REFERENCE = {"sql_canonical": "SELECT name FROM players WHERE age > 30"}
OWN_REFERENCE["sql_execution"] = OWN_REFERENCE["sql_canonical"]
OWN_REFERENCE |= dict.fromkeys(("wikisql_logical", "wikisql_execution"), "SELECT COUNT name FROM table WHERE age > 30")
OWN_REFERENCE |= dict.fromkeys(("ifeval_loose", "ifeval_strict"), '["punctuation:no_comma"]')
COLUMNS = {"table": "name | age", "references": '["a b", "c"]', "answers": '["a b", "7"]', "kwargs": "[{}]"}
TEXT_METRICS = sorted(set(METRICS) - OWN_REFERENCE.keys() - {"pass_at_1"})
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
    answers = [Answer(*pair, COLUMNS) for pair in pairs]
    assert 0 <= metric.score(answers) <= 1
    assert len({len(row) for row in metric.table(answers)}) == 1


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


@pytest.mark.parametrize("name", ["accuracy", "exact_match", "rouge_l", "accuracy_flex_as_published"])
@given(left=texts, right=texts)
def test_symmetry(name: str, left: str, right: str) -> None:
    assert METRICS[name].score([(left, right)]) == METRICS[name].score([(right, left)])


@given(prediction=texts, reference=texts)
def test_rouge_l_equals_rouge_score(prediction: str, reference: str) -> None:
    expected = oracle.score(reference, prediction)["rougeL"].fmeasure
    assert METRICS["rouge_l"].score([(prediction, reference)]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", sorted(OWN_REFERENCE))
@given(text=st.one_of(st.text(max_size=200), words))
def test_programs_and_instructions_survive_any_text(name: str, text: str) -> None:
    metric = METRICS[name]
    score = metric.score([Answer(text, OWN_REFERENCE[name], COLUMNS)])
    assert score in (0, 1)
    assert score == 0 or name.startswith("ifeval")


@pytest.mark.parametrize("name", [name for name in TEXT_METRICS if name != "accuracy_number_as_published"])
def test_an_empty_answer_has_no_credit(name: str) -> None:
    assert METRICS[name].score([Answer("", "1", COLUMNS), Answer("", "some words", COLUMNS)]) == 0


ABSURD = [
    "\0",
    "\ud800",
    "1" * 30_000,
    "{" * 30_000,
    "9" * 400,
    "1e999",
    "nan",
    "-" * 30_000,
    "*" * 30_000,
    "\u0660",
    "((" * 99,
]


@pytest.mark.parametrize("text", ABSURD, ids=range(len(ABSURD)))
def test_absurd_answers_harm_nothing(text: str) -> None:
    for name in [*TEXT_METRICS, *OWN_REFERENCE]:
        metric = METRICS[name]
        assert 0 <= metric.score([Answer(text, OWN_REFERENCE.get(name, "1"), COLUMNS)]) <= 1, name


@given(number=st.floats(0, 5, allow_nan=False), other=st.floats(0, 5, allow_nan=False))
def test_closeness_is_symmetric_and_falls_with_the_distance(number: float, other: float) -> None:
    left, right = f"{number:.3f}", f"{other:.3f}"
    metric = METRICS["closeness"]
    assert metric.score([(left, left)]) == 1
    assert metric.score([(left, right)]) == pytest.approx(metric.score([(right, left)]))
    assert metric.score([(left, right)]) == pytest.approx(1 - abs(float(left) - float(right)) / 5)
