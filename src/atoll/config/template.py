"""The language of prompt templates: `{column}` stands for a column's text, `{{` and `}}` for braces."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKENS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class TemplatePart:
    """A piece of a template: literal text, or the name of a column whose text goes there."""

    text: str
    is_column: bool


def parse_template(template: str) -> tuple[TemplatePart, ...]:
    """Split a template into literal text and columns, in order; adjacent literals are joined.

    Raises ValueError where a brace stands alone or a column has no name.
    """
    parts: list[TemplatePart] = []
    literal = ""
    end = 0
    for match in _TOKENS.finditer(template):
        literal += template[end : match.start()]
        end = match.end()
        column = match[1]
        if match[0] in ("{{", "}}"):
            literal += match[0][0]
        elif column is None:
            raise ValueError(f"has a single {match[0]!r} at character {match.start() + 1}")
        elif not column or column != column.strip():
            raise ValueError(f"has a field without a proper column name, {match[0]!r}")
        else:
            if literal:
                parts.append(TemplatePart(literal, is_column=False))
            literal = ""
            parts.append(TemplatePart(column, is_column=True))
    literal += template[end:]
    if literal:
        parts.append(TemplatePart(literal, is_column=False))
    return tuple(parts)


def template_columns(template: str) -> tuple[str, ...]:
    """The columns a template uses, each once, in order of first use. Raises ValueError as `parse_template` does."""
    return tuple(dict.fromkeys(part.text for part in parse_template(template) if part.is_column))
