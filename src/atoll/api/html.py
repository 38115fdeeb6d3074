"""What notebooks show of our objects. All text is escaped: names and labels may come from anybody's files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """A table; numbers stand to the right."""
    head = "".join(f"<th>{escape(header)}</th>" for header in headers)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def fields(title: str, values: Mapping[str, object]) -> str:
    """A heading and the values that there are, each with its name."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>{_cell(value)}</tr>"
        for name, value in values.items()
        if value not in (None, "")
    )
    return f"<table><caption>{escape(title)}</caption><tbody>{rows}</tbody></table>"


def _cell(value: object) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    text = "" if value is None else f"{value:,.3f}" if isinstance(value, float) else str(value)
    return f"<td style='text-align:{'right' if is_number else 'left'}'>{escape(text)}</td>"
