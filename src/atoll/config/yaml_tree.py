"""YAML text to plain values that remember where they stand.

Built on the parser's events instead of a loader, so that depth and size are bounded before memory is spent, and so that
scalars mean what YAML 1.2's core schema says (`no` is text, `1e-3` a number) whatever directives a file begins with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from ruamel.yaml.reader import ReaderError

MAX_DEPTH = 32
MAX_NODES = 100_000

_FORBIDDEN = re.compile("[\0\ud800-\udfff]")
_INT = re.compile(r"[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | float | None] = {"": None, "~": None}
for _word, _value in (("null", None), ("true", True), ("false", False)):
    _WORDS |= {_word: _value, _word.upper(): _value, _word.capitalize(): _value}
_WORDS |= {sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")}
_WORDS |= {word: float("nan") for word in (".nan", ".NaN", ".NAN")}


class Place(NamedTuple):
    """A position in a file; both count from 1."""

    line: int
    column: int


class Problem(NamedTuple):
    """Something wrong at a place, and how to mend it."""

    place: Place
    what: str
    mend: str


class YamlError(Exception):
    """The text cannot be read any further."""

    def __init__(self, place: Place, what: str, mend: str) -> None:
        super().__init__(what)
        self.problem = Problem(place, what, mend)


@dataclass(frozen=True)
class Node:
    """A value of the file. `source` is a scalar's text; `keys` and `children` are filled for mappings and lists."""

    value: Any
    place: Place
    source: str | None = None
    keys: dict[str | int, Place] = field(default_factory=dict)
    children: dict[str | int, Node] = field(default_factory=dict)
    num_nodes: int = 1


def parse_yaml(text: str) -> tuple[Node | None, list[Problem]]:
    """The root of the one document in `text` (None if there is none), and problems that did not end the reading.

    Raises YamlError at the first problem that does.
    """
    builder = _Builder(_events(text))
    return builder.document(), builder.problems


def _events(text: str) -> Iterator[Event]:
    yaml = YAML(typ="safe", pure=True)
    try:
        # What YAML.parse does, but it forgets the reader's position when the parser fails.
        _, parser = yaml.get_constructor_parser(text)
        while parser.check_event():
            yield parser.get_event()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
        raise _syntax_problem(text, place, error.problem or "not valid YAML") from error
    except ReaderError as error:
        before = text[: error.position]
        place = Place(before.count("\n") + 1, len(before) - before.rfind("\n"))
        what = f"the character U+{ord(text[error.position]):04X} is not allowed in YAML"
        raise YamlError(place, what, 'remove it, or write it as an escape inside "double quotes"') from error
    except (
        ValueError,
        OverflowError,
        IndexError,
        AttributeError,
        TypeError,
        AssertionError,
        NotImplementedError,
    ) as error:
        # On some malformed input (bad escapes, bad directives) the parser fails with errors that are not its own.
        place = Place(yaml.reader.line + 1, yaml.reader.column + 1)
        raise YamlError(
            place, f"not valid YAML: {error}", "check the escapes in quoted text, and directives"
        ) from error


def _syntax_problem(text: str, place: Place, message: str) -> YamlError:
    line = text.splitlines()[place.line - 1] if place.line <= len(text.splitlines()) else ""
    indent = line[: len(line) - len(line.lstrip())]
    if "\t" in indent:
        tab = Place(place.line, indent.index("\t") + 1)
        return YamlError(tab, "a tab in the indentation, which YAML does not allow", "indent with spaces")
    if "mapping values are not allowed" in message:
        mend = "put the value in quotes if it contains `: `; else check the indentation"
    elif "cannot start any token" in message:
        mend = "put the value in quotes"
    elif re.search(r":\s+\{", line):
        mend = "put a value that begins with `{` in quotes"
    else:
        mend = "check the indentation, the quotes and the brackets here and on the line before"
    return YamlError(place, f"not valid YAML: {message}", mend)


def _place(event: Event) -> Place:
    return Place(event.start_mark.line + 1, event.start_mark.column + 1)


def _scalar(event: ScalarEvent) -> Any:
    """The value of a scalar by YAML 1.2's core schema; numbers of more than 40 digits stay text."""
    text: str = event.value
    if not event.implicit[0]:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _clean(event: ScalarEvent) -> str:
    """A scalar's text, which escapes can fill with what no file may hold. Raises YamlError."""
    text: str = event.value
    if _FORBIDDEN.search(text):
        what = "an escape for a NUL or for half of a surrogate pair"
        raise YamlError(_place(event), what, "remove it; write characters beyond U+FFFF as \\U and eight digits")
    return text


class _Builder:
    """Reads events into nodes; recursion is bounded by MAX_DEPTH."""

    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events
        self._anchors: dict[str, Node] = {}
        self._open_anchors: set[str] = set()
        self._num_nodes = 0
        self.problems: list[Problem] = []

    def document(self) -> Node | None:
        root = None
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                if root is not None:
                    what = "a second document begins here"
                    raise YamlError(_place(event), what, "keep one document to a file, and remove this `---`")
                root = self._node(next(self._events), depth=1)
            elif isinstance(event, StreamEndEvent):
                break
        return root

    def _node(self, event: Event, depth: int) -> Node:
        place = _place(event)
        if isinstance(event, AliasEvent):
            return self._alias(event)
        if depth > MAX_DEPTH:
            raise YamlError(place, f"nested more than {MAX_DEPTH} levels deep", "no key needs more than a few levels")
        self._count(1, place)
        tag = getattr(event, "ctag", None)
        if tag is not None:
            what = f"the tag `{tag.handle or ''}{tag.suffix}` is not supported"
            self.problems.append(Problem(place, what, "remove it; text that looks like a number goes in quotes"))
        anchor = event.anchor if isinstance(event, NodeEvent) else None
        if anchor is not None:
            self._open_anchors.add(anchor)
        if isinstance(event, MappingStartEvent):
            node = self._mapping(place, depth)
        elif isinstance(event, SequenceStartEvent):
            node = self._sequence(place, depth)
        else:
            assert isinstance(event, ScalarEvent)  # the parser's last kind of node
            node = Node(_scalar(event), place, source=_clean(event))
        if anchor is not None:
            self._open_anchors.discard(anchor)
            self._anchors[anchor] = node
        return node

    def _alias(self, event: AliasEvent) -> Node:
        place = _place(event)
        node = self._anchors.get(event.anchor)
        if event.anchor in self._open_anchors or node is None:
            what = f"`*{event.anchor}` refers to " + ("itself" if event.anchor in self._open_anchors else "nothing")
            raise YamlError(place, what, f"mark a value before this line with `&{event.anchor}`, or write it out")
        self._count(node.num_nodes, place)
        return replace(node, place=place)

    def _mapping(self, place: Place, depth: int) -> Node:
        value: dict[str, Any] = {}
        keys: dict[str | int, Place] = {}
        children: dict[str | int, Node] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            key_place = _place(event)
            if not isinstance(event, ScalarEvent):
                raise YamlError(
                    key_place,
                    "a key must be plain text",
                    "write `key: value`; quote a value that begins with `{` or `[`",
                )
            key = _clean(event)
            child = self._node(next(self._events), depth + 1)
            if child.source == "" and child.value is None:
                # Nothing is written after the key, so there is no better place than the key's.
                child = replace(child, place=key_place)
            if key in keys:
                what = f"the key `{key}` is already on line {keys[key].line}"
                self.problems.append(Problem(key_place, what, "keep one of the two"))
                continue
            value[key], keys[key], children[key] = child.value, key_place, child
        return Node(value, place, None, keys, children, 1 + sum(child.num_nodes for child in children.values()))

    def _sequence(self, place: Place, depth: int) -> Node:
        children: dict[str | int, Node] = {}
        while not isinstance(event := next(self._events), SequenceEndEvent):
            children[len(children)] = self._node(event, depth + 1)
        value = [child.value for child in children.values()]
        return Node(value, place, None, {}, children, 1 + sum(child.num_nodes for child in children.values()))

    def _count(self, num_nodes: int, place: Place) -> None:
        self._num_nodes += num_nodes
        if self._num_nodes > MAX_NODES:
            raise YamlError(place, f"more than {MAX_NODES:,} values, aliases written out", "use fewer aliases")
