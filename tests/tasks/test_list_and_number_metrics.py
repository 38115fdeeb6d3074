"""Labels, accepted answers, ratings, ranks and final numbers: by hand, and against numpy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.tasks.metrics import METRICS, Answer


def points(metric: str, prediction: str, reference: str, **columns: str) -> float:
    return METRICS[metric].score([Answer(prediction, reference, columns)])


@pytest.mark.parametrize(
    ("prediction", "stats"),
    [
        ("grain, wheat", (2, 0, 0)),
        ("Wheat,  GRAIN.", (2, 0, 0)),
        ("wheat\ngrain\nwheat", (2, 0, 0)),
        ("grain", (1, 0, 1)),
        ("grain, corn", (1, 1, 1)),
        ("grain wheat", (0, 1, 2)),
        ("", (0, 1, 2)),
        (" ,;\n", (0, 1, 2)),
    ],
)
def test_label_sets_have_no_order(prediction: str, stats: tuple[int, int, int]) -> None:
    assert METRICS["label_set_f1"].stats(prediction, "grain, wheat") == stats


@given(left=st.sets(st.sampled_from("abcdef")), right=st.sets(st.sampled_from("abcdef")))
def test_label_set_f1_is_that_of_sets(left: set[str], right: set[str]) -> None:
    score = points("label_set_f1", ", ".join(left), ", ".join(right))
    expected = 2 * len(left & right) / (len(left) + len(right)) if left or right else 1.0
    assert score == pytest.approx(expected)
    assert score == points("label_set_f1", ", ".join(right), ", ".join(left))


@pytest.mark.parametrize(
    ("prediction", "answers", "f1", "exact"),
    [
        ("Philip Rivers", ["Philip Rivers", "Mike Tolbert"], 1, 1),
        ("the rivers, Philip.", ["Philip Rivers"], 1, 1),
        ("Rivers", ["Philip Rivers"], 2 / 3, 0),
        ("7", ["7.0"], 1, 1),
        ("7 yards", ["7"], 2 / 3, 0),
        ("8 yards", ["7 yards"], 0, 0),  # another number is another answer
        ("50,000", ["50000"], 1, 1),
        ("well-known", ["known well"], 1, 1),
        ("Tolbert", ["Philip Rivers", "Tolbert"], 1, 1),
        ("", ["7"], 0, 0),
        ("nan", ["nan"], 1, 1),
    ],
)
def test_drop_folds_as_its_own_evaluation(prediction: str, answers: list[str], f1: float, exact: float) -> None:
    column = json.dumps(answers)
    assert points("drop_f1", prediction, answers[0], answers=column) == pytest.approx(f1)
    assert points("drop_exact", prediction, answers[0], answers=column) == exact


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("3.8", 1), ("3", 0.84), (" 4.8 (similar)", 0.8), ("about 3.8", 0), ("6", 0), ("-1", 0), ("", 0), ("nan", 0)],
)
def test_closeness_reads_a_number_at_the_start(prediction: str, expected: float) -> None:
    assert points("closeness", prediction, "3.8") == pytest.approx(expected)


def numpy_spearman(left: list[float], right: list[float]) -> float:
    def ranks(values: list[float]) -> np.ndarray:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

    return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


ratings = st.integers(0, 25).map(lambda number: number / 5)


@given(pairs=st.lists(st.tuples(ratings, ratings), min_size=2, max_size=30))
def test_spearman_equals_numpys(pairs: list[tuple[float, float]]) -> None:
    score = METRICS["spearman"].score([(str(left), str(right)) for left, right in pairs])
    left, right = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if len(set(left)) == 1 or len(set(right)) == 1:
        assert score == 0  # no order, no correlation
    else:
        assert score == pytest.approx(max(0.0, numpy_spearman(left, right)), abs=1e-9)


def test_answers_that_are_no_numbers_lower_the_rank_correlation() -> None:
    right = [(str(number / 10), str(number / 10)) for number in range(50)]
    half = [(given if number % 2 else "no idea", expected) for number, (given, expected) in enumerate(right)]
    assert METRICS["spearman"].score(right) == pytest.approx(1)
    assert 0.5 < METRICS["spearman"].score(half) < 0.9
    assert METRICS["spearman"].score([("no idea", expected) for _, expected in right]) == 0
    assert METRICS["spearman"].score([("2.5", expected) for _, expected in right]) == 0
    backwards = [(str(5 - float(given)), expected) for given, expected in right]
    assert METRICS["spearman"].score(backwards) == 0
    assert not any(math.isnan(value) for row in METRICS["spearman"].table([Answer("x", "1")]) for value in row)


@pytest.mark.parametrize(
    ("prediction", "strict", "published"),
    [
        ("so it is\n#### 1,200", 1, 1),
        ("####1200.00", 1, 1),
        ("#### $1200", 1, 1),
        ("#### 1200\n\nQuestion: 5 apples", 1, 0),
        ("The answer is 1200.", 0, 1),
        ("#### 12", 0, 0),
        ("#### x 1200", 0, 1),
        ("#### ", 0, 0),
        ("", 0, 0),
        ("#### " + "9" * 500, 0, 0),
    ],
)
def test_gsm8k_reads_the_number_after_the_marks(prediction: str, strict: float, published: float) -> None:
    reference = "12 * 100 = <<12*100=1200>>1200\n#### 1200"
    assert points("gsm8k_number", prediction, reference) == strict
    assert points("gsm8k_number_as_published", prediction, reference) == published


@pytest.mark.parametrize(
    ("prediction", "label", "expected"),
    [
        ("1", "1", 1),
        ("1 (positive)", "1", 1),
        ("Answer: 1", "1", 1),
        ("The correct answer is: 1, because", "1", 1),
        ("(B) the second", "B", 1),
        ("B: a vacuum flask", "B", 1),
        ("Positive, I think", "Positive", 1),
        ("Extremely Positive", "Positive", 0),
        ("10", "1", 0),
        ("1.5", "1", 0),
        ("-1", "1", 0),
        ("not 1", "1", 0),
        ("because", "B", 0),
        ("", "1", 0),
    ],
)
def test_label_match_looks_at_the_start_of_an_answer(prediction: str, label: str, expected: float) -> None:
    assert points("label_match", prediction, label) == expected


@given(text=st.text(max_size=30), label=st.sampled_from(["1", "yes", "Extremely Positive"]))
def test_an_exact_label_always_matches(text: str, label: str) -> None:
    assert points("label_match", label, label) == 1
    assert points("label_match", text, label) >= points("accuracy", text, label)


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "expected"),
    [
        ("accuracy_digit_as_published", "0, 1, 2, 3", "3", 1),
        ("accuracy_digit_as_published", "the second", "2", 0),
        ("accuracy_digit_as_published", "10", "0", 1),
        ("accuracy_mrpc_as_published", "1 or 2", "1", 1),
        ("accuracy_mrpc_as_published", "0 (different)", "0", 0),  # it looks for 1 and 2, the labels are 0 and 1
        ("accuracy_mrpc_as_published", "0.", "0", 1),
        ("accuracy_mrpc_as_published", " 0", "0", 0),  # spaces are not stripped
        ("accuracy_number_as_published", "2023", "202", 1),
        ("accuracy_number_as_published", "none", "no number", 1),
        ("accuracy_number_as_published", "option 2, not 3", "2", 1),
        ("accuracy_substring_as_published", "not pay bill", "pay bill", 1),
        ("accuracy_substring_as_published", "bill", "pay bill", 0),
        ("rouge_class_as_published", "7", "NaturalPlace", 1),
        ("rouge_class_as_published", "Natural Place", "NaturalPlace", 0),
        ("rouge_class_as_published", "99", "NaturalPlace", 0),
        ("closeness_as_published", "about 3.8", "3.8", 1),
        ("closeness_as_published", "3,000", "3.8", 0),
        ("closeness_as_published", "40", "3.8", 0),
    ],
)
def test_published_measures_repeat_their_faults(metric: str, prediction: str, reference: str, expected: float) -> None:
    assert points(metric, prediction, reference) == pytest.approx(expected)
