"""YAML that is written is read back as it was."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.config.yaml_text import comment_lines, to_yaml
from atoll.config.yaml_tree import parse_yaml

# What no file may hold, however it is written, is left out.
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=40)
LINES = st.lists(st.sampled_from(["", "a", " b", "c ", "{x}", "# no", "- d", "é"]), max_size=5).map("\n".join)
WORDS = st.sampled_from(["yes", "null", "1e3", ".5", "0x1", "~", "-", ".inf", "2021-01-01", "a: b", "a #", "TRUE"])
NUMBERS = st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT | LINES | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(TEXT, VALUES, min_size=1, max_size=5))
@settings(max_examples=400, deadline=None)
def test_any_document_comes_back(document: dict[str, Any]) -> None:
    root, problems = parse_yaml(to_yaml(document))
    assert root is not None
    assert root.value == document
    assert problems == []


@given(TEXT)
def test_comments_change_nothing(comment: str) -> None:
    document = {"a": {"b": {"c": [1, 2]}}, "d": "x"}
    root, _ = parse_yaml(to_yaml(document, {"a": comment, "a.b.c": comment, "d": comment}))
    assert root is not None
    assert root.value == document
    assert all(line.startswith("#") for line in comment_lines(comment))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"path": "a.csv"}, "x:\n  path: a.csv\n"),
        ("one\ntwo", "x: |-\n  one\n  two\n"),
        ("one\ntwo\n", "x: |\n  one\n  two\n"),
        ("true", 'x: "true"\n'),
        (["a", "b c"], "x: [a, b c]\n"),
        (0.0002, "x: 0.0002\n"),
    ],
)
def test_it_is_written_as_a_person_would(value: Any, text: str) -> None:
    assert to_yaml({"x": value}) == text
