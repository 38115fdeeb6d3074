"""BLEU and chrF against sacrebleu, on made-up and on real text, with one reference and with several."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from atoll.errors import DataError
from atoll.tasks.dataset import load_split
from atoll.tasks.metrics import METRICS, Answer
from atoll.tasks.task import find_task

words = st.lists(st.sampled_from(["a", "b", "the", "1,000", "3.5", "x-y", "&amp;", '"c"', "end."]), max_size=12)
texts = st.one_of(words.map(" ".join), st.text(max_size=40))
PREDICTIONS = [
    "The Lantern is a pub by the river, rated 3.5 of 5.",
    "A pub: The Lantern (1,000 m from the centre)!",
    "it's state-of-the-art &amp; cheap",
]
REFERENCES = [
    ["The Lantern is a riverside pub rated 3.5 out of 5.", "By the river lies The Lantern, a pub."],
    ["The Lantern is a pub 1,000 m from the centre.", "A pub near the centre: The Lantern."],
    ["It is state-of-the-art & cheap.", "cheap"],
]


def ours(metric: str, predictions: list[str], references: list[list[str]]) -> float:
    answers = [
        Answer(given, several[0], {"references": json.dumps(several)})
        for given, several in zip(predictions, references, strict=True)
    ]
    return METRICS[metric].score(answers)


def theirs(metric: BLEU | CHRF, predictions: list[str], references: list[list[str]]) -> float:
    return metric.corpus_score(predictions, [list(column) for column in zip(*references, strict=True)]).score / 100


def test_equal_to_sacrebleu_with_one_reference_and_with_two() -> None:
    first = [several[:1] for several in REFERENCES]
    assert ours("bleu", PREDICTIONS, first) == pytest.approx(theirs(BLEU(), PREDICTIONS, first), abs=1e-9)
    assert ours("chrf", PREDICTIONS, first) == pytest.approx(theirs(CHRF(), PREDICTIONS, first), abs=1e-9)
    for name, oracle in (("bleu_references", BLEU()), ("chrf_references", CHRF())):
        assert ours(name, PREDICTIONS, REFERENCES) == pytest.approx(theirs(oracle, PREDICTIONS, REFERENCES), abs=1e-9)


@given(pairs=st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_equal_to_sacrebleu_on_any_text(pairs: list[tuple[str, str]]) -> None:
    predictions, references = [pair[0] for pair in pairs], [[pair[1]] for pair in pairs]
    assert ours("bleu", predictions, references) == pytest.approx(theirs(BLEU(), predictions, references), abs=1e-9)
    assert ours("chrf", predictions, references) == pytest.approx(theirs(CHRF(), predictions, references), abs=1e-9)


def test_equal_to_sacrebleu_on_real_text(loraland: Path) -> None:
    examples = load_split(find_task("e2e_nlg"), "test", data_root=loraland, limit=200)
    targets = [example.row["human_reference"] for example in examples]
    predictions, references = targets[1:] + targets[:1], [[target] for target in targets]
    for name, oracle in (("bleu", BLEU()), ("chrf", CHRF())):
        score = ours(name, predictions, references)
        assert 0 < score < 1
        assert score == pytest.approx(theirs(oracle, predictions, references), abs=1e-9)


@given(words=st.lists(st.sampled_from(["a", "b", "c"]), min_size=4, max_size=9).map(" ".join))
def test_an_equal_text_of_four_words_has_full_marks(words: str) -> None:
    assert METRICS["bleu"].score([(words, words)]) == pytest.approx(1)
    assert METRICS["chrf"].score([(words, words)]) == pytest.approx(1)


def test_any_of_several_references_will_do() -> None:
    second = REFERENCES[0][1]
    assert ours("bleu_references", [second], REFERENCES[:1]) == pytest.approx(1)
    assert ours("chrf_references", [second], REFERENCES[:1]) == pytest.approx(1)
    assert ours("bleu", [second], REFERENCES[:1]) < 0.5


@pytest.mark.parametrize("column", ["", "no list", "[]", "{}", "null", "[" * 9_999])
def test_a_column_that_is_no_list_is_an_error_of_the_data(column: str) -> None:
    with pytest.raises(DataError, match="`references` holds no list"):
        METRICS["bleu_references"].score([Answer("a", "a", {"references": column})])
    with pytest.raises(DataError, match="needs the column `references`"):
        METRICS["bleu_references"].score([("a", "a")])
