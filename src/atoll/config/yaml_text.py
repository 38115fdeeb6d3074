"""Plain values as YAML text that a person would write; `yaml_tree` reads it back to the same values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

Value = str | int | float | bool | None | Sequence["Value"] | Mapping[str, "Value"]

_WIDTH = 100
_NO_COMMENTS: Mapping[str, str] = MappingProxyType({})
# Words that need no quotes: no sign that YAML reads, and nothing that it takes for a number, a truth or nothing.
_PLAIN = re.compile(r"[A-Za-z_./][\w./ -]*")
_NO_TEXT = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
_NUMBER_LIKE = re.compile(r"\.([0-9]|inf|nan)", re.IGNORECASE)


def to_yaml(document: Mapping[str, Value], comments: Mapping[str, str] = _NO_COMMENTS) -> str:
    """A mapping as a YAML document. comments: dotted path of a key -> what stands above it, without the `#`."""
    return "".join(f"{line}\n" for line in _mapping(document, (), comments))


def comment_lines(text: str, indent: int = 0) -> list[str]:
    """Text as comments, wrapped."""
    import textwrap

    prefix = " " * indent + "# "
    safe = "".join(char if char.isprintable() else " " for char in text)
    return textwrap.wrap(
        safe, 118, initial_indent=prefix, subsequent_indent=prefix, break_long_words=False, break_on_hyphens=False
    )


def _mapping(mapping: Mapping[str, Value], path: tuple[str, ...], comments: Mapping[str, str]) -> list[str]:
    indent = 2 * len(path)
    lines = []
    for key, value in mapping.items():
        here = (*path, key)
        if comment := comments.get(".".join(here)):
            lines += comment_lines(comment, indent)
        head = " " * indent + _scalar(key) + ":"
        lines += _entry(head, value, here, comments)
    return lines


def _entry(head: str, value: Value, path: tuple[str, ...], comments: Mapping[str, str]) -> list[str]:
    indent = 2 * len(path)
    if isinstance(value, str) and (block := _block(value)):
        return [f"{head} {block[0]}", *(" " * indent + line if line else "" for line in block[1:])]
    if isinstance(value, Mapping) and value:
        has_comments = any(key.startswith(".".join(path) + ".") for key in comments)
        flow = _flow(value)
        is_short = len(path) > 1 and len(head) + len(flow) < _WIDTH and "\\n" not in flow
        if has_comments or not is_short:
            return [head, *_mapping(value, path, comments)]
        return [f"{head} {flow}"]
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        flow = _flow(value)
        if len(head) + len(flow) >= _WIDTH:
            return [head, *(f"{' ' * indent}- {_flow(item)}" for item in value)]
        return [f"{head} {flow}"]
    return [f"{head} {_flow(value)}"]


def _block(text: str) -> list[str] | None:
    """A literal block, for text of several lines that it can hold as it is."""
    body = text.removesuffix("\n")
    lines = body.split("\n")
    is_plain = all(line.isprintable() and line == line.rstrip() for line in lines)
    if "\n" not in text or not is_plain or not lines[0] or lines[0][0] == " " or not lines[-1]:
        return None
    return ["|" if text.endswith("\n") else "|-", *lines]


def _flow(value: Value) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    return _scalar(value)


def _scalar(value: str | int | float | bool | None) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    is_plain = (
        _PLAIN.fullmatch(value)
        and value.isascii()
        and value == value.strip()
        and value.lower() not in _NO_TEXT
        and not _NUMBER_LIKE.match(value)
    )
    return value if is_plain else _quoted(value)


def _quoted(text: str) -> str:
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"}
    return '"' + "".join(escapes.get(char) or (char if char.isprintable() else _escaped(char)) for char in text) + '"'


def _escaped(char: str) -> str:
    return f"\\U{ord(char):08x}"
