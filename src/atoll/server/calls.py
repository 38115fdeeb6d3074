"""The calls of functions in an answer while it arrives, told apart from its text."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from atoll.text.chat_tools import CALL_CLOSE, CALL_OPEN

_FORCED_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([a-zA-Z0-9_-]+)"\s*,\s*"arguments"\s*:\s*(?=\{)')


@dataclass(frozen=True)
class CallDelta:
    """A part of a call: the first one has its name and no arguments, the others more of the arguments' JSON."""

    index: int
    call_id: str
    name: str | None = None
    arguments: str = ""


Part = str | CallDelta
"""A part of an answer: text, or part of a call."""


class AnswerReader(Protocol):
    """Takes an answer's text as it comes and tells text from calls."""

    num_calls: int

    def push(self, text: str) -> list[Part]:
        """What is certain now."""

    def finish(self) -> list[Part]:
        """What was held back, at the end."""


class TextReader:
    """For answers without calls: everything is text."""

    num_calls = 0

    def push(self, text: str) -> list[Part]:
        """The text itself."""
        return [text] if text else []

    def finish(self) -> list[Part]:
        """Nothing: no text is held back."""
        return []


class ForcedCallReader:
    """For answers that their grammar makes one call, `{"name": ..., "arguments": {...}}`: arguments are passed on."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._held = ""
        self._call_id = ""
        self._end = _JsonEnd()

    def push(self, text: str) -> list[Part]:
        """The name as soon as the arguments begin, then more of the arguments."""
        if self._call_id:
            return self._arguments(text)
        self._held += text
        head = _FORCED_HEAD.match(self._held)
        if head is None:
            return []
        self.num_calls = 1
        self._call_id = _new_call_id()
        return [CallDelta(0, self._call_id, name=head[1]), *self._arguments(self._held[head.end() :])]

    def finish(self) -> list[Part]:
        """Nothing: an answer that was cut off within the name has no call."""
        return []

    def _arguments(self, text: str) -> list[Part]:
        if self._end.is_found:
            return []  # what closes the object around the arguments
        end = self._end.push(text)
        text = text if end is None else text[:end]
        return [CallDelta(0, self._call_id, arguments=text)] if text else []


class FreeAnswerReader:
    """Finds calls in what a model writes on its own: `<tool_call>{...}</tool_call>`, or an answer that begins as JSON.

    Only whole calls of functions that the client has offered are calls; everything else stays text, as it was written.
    """

    def __init__(self, names: Collection[str], several: bool = True) -> None:
        """names: the functions on offer. several: False to drop all calls but the first."""
        self.num_calls = 0
        self._names = names
        self._several = several
        self._held = ""
        self._has_text = False
        self._is_after_call = False
        self._opening: str | None = None
        """What stands before a JSON value that is being read; None where none is."""
        self._end = _JsonEnd()

    def push(self, text: str) -> list[Part]:
        """Text before a call is given at once, a call when it is whole."""
        parts: list[Part] = []
        self._held += text
        while self._step(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        """What was held back: the beginning of a call that never ended is text."""
        text = (self._opening or "") + self._held
        return [text] if text.strip() or (text and not self.num_calls) else []

    def _step(self, parts: list[Part]) -> bool:
        """Use up some of what is held; whether that may lead on."""
        if self._opening is not None:
            return self._read_value(parts)
        if self._is_after_call and not self._skip_close():
            return False
        held = self._held
        at = held.find(CALL_OPEN)
        if at >= 0:
            text = held[:at].rstrip()
            self._give_text(text, parts)
            self._begin_value(len(text), at + len(CALL_OPEN))
            return True
        blank = len(held) - len(held.lstrip())
        if not self._has_text and held[blank : blank + 1] in ("{", "["):
            self._begin_value(0, blank)
            return True
        certain = held[: len(held) - _num_doubtful(held)].rstrip()
        self._give_text(certain, parts)
        self._held = held[len(certain) :]
        return False

    def _begin_value(self, start: int, value_start: int) -> None:
        self._opening, self._held = self._held[start:value_start], self._held[value_start:]
        self._end = _JsonEnd()

    def _read_value(self, parts: list[Part]) -> bool:
        """Wait for the end of the value that has begun; then it is calls, or text after all."""
        begin = self._held.lstrip()[:1]
        if begin not in ("", "{", "["):
            return self._give_up(0, parts)
        self._end.push(self._held[self._end.num_read :])
        if not self._end.is_found:
            return False
        calls = _calls(self._held[: self._end.num_read], self._names)
        if not calls:
            return self._give_up(self._end.num_read, parts)
        for name, arguments in calls if self._several else calls[: 1 - self.num_calls]:
            call_id = _new_call_id()
            parts += [CallDelta(self.num_calls, call_id, name), CallDelta(self.num_calls, call_id, None, arguments)]
            self.num_calls += 1
        self._opening, self._held = None, self._held[self._end.num_read :]
        self._is_after_call = True
        return True

    def _give_up(self, end: int, parts: list[Part]) -> bool:
        self._give_text((self._opening or "") + self._held[:end], parts)
        self._opening, self._held = None, self._held[end:]
        return True

    def _skip_close(self) -> bool:
        """Drop what closes the call before; False while more text has to come to know."""
        rest = self._held.lstrip()
        if rest.startswith(CALL_CLOSE):
            self._held = rest[len(CALL_CLOSE) :]
        elif CALL_CLOSE.startswith(rest):
            return False
        self._is_after_call = False
        return True

    def _give_text(self, text: str, parts: list[Part]) -> None:
        if text:
            self._has_text = True
            parts.append(text)


@dataclass
class _JsonEnd:
    """Finds the end of a JSON object or array whose text comes bit by bit."""

    num_read: int = 0
    """Characters of the value so far; once it is found, all of them."""
    is_found: bool = False
    _depth: int = field(default=0, repr=False)
    _in_string: bool = field(default=False, repr=False)
    _is_escaped: bool = field(default=False, repr=False)

    def push(self, text: str) -> int | None:
        """Take more text; returns the place in `text` after the value's last character, once it is there."""
        for place, character in enumerate(text, start=1):
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_string:
                self._is_escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.num_read += place
                    self.is_found = True
                    return place
        self.num_read += len(text)
        return None


def _calls(text: str, names: Collection[str]) -> list[tuple[str, str]]:
    """Names and arguments (JSON) of the calls that `text` is, one or a list of them; none unless all are calls."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return []
    calls = [_call(item, names) for item in (value if isinstance(value, list) else [value])]
    found = [call for call in calls if call is not None]
    return found if len(found) == len(calls) else []


def _call(value: Any, names: Collection[str]) -> tuple[str, str] | None:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or value.get("name") not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # JSON within JSON, as OpenAI writes it
        return (value["name"], arguments) if _is_object(arguments) else None
    return (value["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text, parse_constant=_refuse), dict)
    except (ValueError, RecursionError):
        return False


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _num_doubtful(text: str) -> int:
    """Length of the longest ending that is the beginning of CALL_OPEN."""
    return next((length for length in range(len(CALL_OPEN) - 1, 0, -1) if text.endswith(CALL_OPEN[:length])), 0)


def _new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def read_whole(reader: AnswerReader, text: str) -> Sequence[Part]:
    """The parts of a whole answer, each call in one part with its name and all of its arguments."""
    merged: list[Part] = []
    for part in [*reader.push(text), *reader.finish()]:
        last = merged[-1] if merged else None
        if isinstance(part, CallDelta) and isinstance(last, CallDelta) and last.index == part.index:
            merged[-1] = CallDelta(last.index, last.call_id, last.name, last.arguments + part.arguments)
        else:
            merged.append(part)
    return merged
