"""Calls are found in whatever way a text is cut, and nothing else of it is lost."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.server.calls import AnswerReader, CallDelta, ForcedCallReader, FreeAnswerReader, read_whole

NAMES = ("weather", "time_of-day")


def read(reader: AnswerReader, pieces: list[str]) -> tuple[str, list[tuple[str, Any]]]:
    """The text of an answer and its calls; the deltas of a call come name first, and each call has its own id."""
    parts = [part for piece in pieces for part in reader.push(piece)] + reader.finish()
    text = "".join(part for part in parts if isinstance(part, str))
    calls: list[tuple[str, str]] = []
    ids: list[str] = []
    for part in parts:
        if isinstance(part, CallDelta):
            if part.name is not None:
                assert (part.index, part.arguments) == (len(calls), "")
                calls.append((part.name, ""))
                ids.append(part.call_id)
            assert part.index == len(calls) - 1
            assert part.call_id == ids[-1]
            calls[-1] = calls[-1][0], calls[-1][1] + part.arguments
    assert len(set(ids)) == len(ids) == reader.num_calls
    return text, [(name, json.loads(arguments)) for name, arguments in calls]


def cut(text: str, places: list[int]) -> list[str]:
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich </tool_call> {\\"x\\": 1}"}}\n</tool_call>'
FOUND: list[tuple[str, str, list[tuple[str, Any]]]] = [
    (CALL, "", [("weather", {"city": 'Zürich </tool_call> {"x": 1}'})]),
    ("Let me see. \n" + CALL, "Let me see.", [("weather", {"city": 'Zürich </tool_call> {"x": 1}'})]),
    (
        '<tool_call>{"name": "weather", "arguments": {}}</tool_call>\n'
        '<tool_call>{"name": "time_of-day", "arguments": {"a": [1, {"b": "}"}]}}</tool_call>\n',
        "",
        [("weather", {}), ("time_of-day", {"a": [1, {"b": "}"}]})],
    ),
    ('<tool_call>{"name": "weather", "arguments": {}}', "", [("weather", {})]),
    ('{"name": "weather", "parameters": {"city": "Bern"}}', "", [("weather", {"city": "Bern"})]),
    (' {"name": "weather"}', "", [("weather", {})]),
    ('{"type": "function", "function": {"name": "weather", "arguments": "{\\"a\\": 1}"}}', "", [("weather", {"a": 1})]),
    (
        '[{"name": "weather", "arguments": {"a": 1}}, {"name": "weather", "arguments": {"a": 2}}]',
        "",
        [("weather", {"a": 1}), ("weather", {"a": 2})],
    ),
]
TEXT = [
    "",
    " ",
    "No call at all.\n\n",
    "a < b <tool",
    "<tool_call>",
    '<tool_call>{"name": "weather", "arguments": {',
    "see <tool_call>nothing</tool_call> here",
    '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "weather", "arguments": 5}</tool_call>',
    '<tool_call>{"name": ["weather"]}</tool_call>',
    '{"name": "Anna", "age": 5}',
    '{"answer": [1, 2]} and more',
    '[{"name": "weather", "arguments": {}}, 5]',
    "[1, 2",
    "}{",
    '{"name": "weather", "arguments": {"x": NaN}}',
    '{"name": "weather", "arguments": "no object"}',
    'Like this: {"name": "weather", "arguments": {}}',
    "{" * 3000 + "}" * 3000,
    '{"name": "weather", "arguments": {}' + "]",
]


@pytest.mark.parametrize(("answer", "text", "calls"), FOUND)
@given(places=st.lists(st.integers(0, 500), max_size=12))
def test_calls_are_found(answer: str, text: str, calls: list[tuple[str, Any]], places: list[int]) -> None:
    assert read(FreeAnswerReader(NAMES), cut(answer, places)) == (text, calls)


@pytest.mark.parametrize("answer", TEXT)
@given(places=st.lists(st.integers(0, 500), max_size=12))
def test_text_without_calls_stays_as_it_was(answer: str, places: list[int]) -> None:
    assert read(FreeAnswerReader(NAMES), cut(answer, places)) == (answer, [])


@given(st.text(alphabet='{}[]"\\<>/_ aotlc:', max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_no_text_is_lost(answer: str, places: list[int]) -> None:
    assert read(FreeAnswerReader(NAMES), cut(answer, places)) == (answer, [])


def test_text_before_a_call_is_not_held_back() -> None:
    reader = FreeAnswerReader(NAMES)
    assert reader.push("Let me") == ["Let me"]
    assert reader.push(" see <") == [" see"]
    assert reader.push("b") == [" <b"]


def test_one_call_where_no_more_are_wanted() -> None:
    answer = '<tool_call>{"name": "weather"}</tool_call><tool_call>{"name": "time_of-day"}</tool_call>'
    assert read(FreeAnswerReader(NAMES, several=False), [answer]) == ("", [("weather", {})])


FORCED = '{"name": "weather", "arguments": {"city": "a \\"}\\" b", "n": {"m": [1]}}}'


@given(places=st.lists(st.integers(0, 100), max_size=12))
def test_a_forced_call_is_passed_on_at_once(places: list[int]) -> None:
    arguments = {"city": 'a "}" b', "n": {"m": [1]}}
    assert read(ForcedCallReader(), cut(FORCED, places)) == ("", [("weather", arguments)])


def test_a_forced_call_that_was_cut_off_has_what_there_is() -> None:
    reader = ForcedCallReader()
    assert reader.push('{"name": "wea') == []
    assert reader.finish() == []
    assert reader.num_calls == 0
    part = read_whole(ForcedCallReader(), FORCED[:40])[0]
    assert isinstance(part, CallDelta)
    assert (part.name, part.arguments) == ("weather", FORCED[len('{"name": "weather", "arguments": ') : 40])
