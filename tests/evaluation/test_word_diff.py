"""Words of an answer beside those of the right one."""

from __future__ import annotations

import pytest

from atoll.evaluation.word_diff import Span, word_diff


@pytest.mark.parametrize(
    ("reference", "answer", "spans"),
    [
        ("a b c", "a b c", [("same", "a b c")]),
        ("a b c", "a x c", [("same", "a "), ("missing", "b "), ("added", "x "), ("same", "c")]),
        ("a b", "a b and more", [("same", "a b "), ("added", "and more")]),
        ("yes", "something else", [("same", "something else")]),
        ("yes", "", []),
    ],
)
def test_words_are_compared(reference: str, answer: str, spans: list[tuple[str, str]]) -> None:
    assert word_diff(reference, answer, max_words=9) == tuple(Span(change, text) for change, text in spans)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reference", "answer"),
    [("a b c", "a x c"), ("", "x"), ("x", ""), ("a  b", "a b"), ("é\n<b>", "<b>\té"), ("same", "same")],
)
def test_a_diff_has_all_of_both_texts(reference: str, answer: str) -> None:
    spans = word_diff(reference, answer, max_words=400)
    assert "".join(span.text for span in spans if span.change != "missing") == answer
    assert "".join(span.text for span in spans if span.change == "missing") in reference
    assert (not reference or not answer) or any(span.change == "same" for span in spans) == bool(
        set(reference) & set(answer)
    )


def test_a_very_long_answer_is_shown_as_it_is() -> None:
    (span,) = word_diff("a", "b " * 2000, max_words=400)
    assert span.change == "same"
