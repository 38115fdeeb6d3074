"""Ludwig's prompt templates: Python's format strings with a few names of their own."""

from __future__ import annotations

import string

# What Ludwig shows for a task without a template.
_ZERO_SHOT = """SAMPLE INPUT: {__sample__}

USER: Complete the following task: {__task__}

ASSISTANT:
"""
_SAMPLE, _TASK, _CONTEXT = "__sample__", "__task__", "__context__"


class BadTemplate(Exception):
    """A template that cannot be translated. key: of the section `prompt`."""

    def __init__(self, what: str, mend: str, key: str = "template") -> None:
        super().__init__(what)
        self.what, self.mend, self.key = what, mend, key


def prompt_template(template: str | None, task: str | None, sample_column: str) -> tuple[str, bool]:
    """Our template for Ludwig's, and whether it shows the input as `{__sample__}`. Raises BadTemplate.

    Without template and task the input column is the whole prompt.
    """
    if template is None and task is None:
        return "{" + _column(sample_column) + "}", False
    if template is not None and task is not None and "{" + _TASK + "}" not in template:
        raise BadTemplate("does not show `{__task__}`, though there is a `task`", "add it, as Ludwig asks for")
    fields: list[str] = []
    text = ""
    for literal, field, spec, conversion in _parsed(template or _ZERO_SHOT):
        text += _braced(literal)
        if field is None:
            continue
        if spec or conversion:
            shown = "{" + field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
            raise BadTemplate(
                f"formats a column, {shown[:60]}", "write the column as it is to be shown, and use {column}"
            )
        fields.append(field)
        text += _filled(field, task, sample_column)
    if all(field == _TASK for field in fields):
        raise BadTemplate("shows no column", "name at least one column as {column}, or {__sample__}")
    return text, _SAMPLE in fields


def _parsed(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(template))
    except ValueError as error:
        raise BadTemplate(f"is no format string: {error}", "write a literal brace as {{ or }}") from None


def _filled(field: str, task: str | None, sample_column: str) -> str:
    if field == _CONTEXT:
        raise BadTemplate("shows `{__context__}`, and nothing is retrieved", "write the context into a column")
    if field == _TASK:
        if task is None:
            raise BadTemplate("shows `{__task__}`, and there is no `task`", "add `task`, or remove it")
        return _braced(task)
    return "{" + _column(sample_column if field == _SAMPLE else field) + "}"


def _column(name: str) -> str:
    if not name or name != name.strip() or any(sign in name for sign in "{}[].!:"):
        raise BadTemplate(f"names {name[:60]!r}, which cannot stand in a template", "rename the column in the data")
    return name


def _braced(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
