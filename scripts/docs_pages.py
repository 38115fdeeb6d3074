"""Pages of the documentation site that are made from other files and from the code, so that they cannot lag behind.

A hook of mkdocs (see mkdocs.yml): each page below is added to the site while it is built, and lies nowhere on disk.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs with the files of docs/; adds the pages that are made here."""
    for path, make in PAGES.items():
        files.append(File.generated(config, path, content=make()))
    return files


def architecture() -> str:
    """ARCHITECTURE.md, with its links as seen from docs/."""
    return (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").replace("](docs/decisions)", "](decisions/index.md)")


def changelog() -> str:
    """CHANGELOG.md as it is."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")


def decisions() -> str:
    """A list of the decision records."""
    records = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    titles = [(path.name, path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")) for path in records]
    return "\n".join(["# Decisions", "", *(f"- [{title}]({name})" for name, title in titles), ""])


def files_reference() -> str:
    """Every key of fleet and task files, from the models that check them."""
    from atoll.config.fleet import FleetConfig
    from atoll.config.task import TaskConfig

    lines = [
        "# Fleet and task files",
        "",
        "Made from the models that check these files: what is not listed here is refused, with the line it stands on.",
        "`atoll schema fleet` and `atoll schema task` print the same as JSON Schema, for an editor's completion.",
        "",
    ]
    for title, model in (("Fleet files", FleetConfig), ("Task files", TaskConfig)):
        lines += [f"## {title}", "", inspect.cleandoc(model.__doc__ or ""), ""]
        lines += _keys(model)
        for section in _sections(model):
            lines += [f"### {section.__name__.removesuffix('Config')}", "", inspect.cleandoc(section.__doc__ or ""), ""]
            lines += _keys(section)
    return "\n".join(lines)


def _keys(model: type[BaseModel]) -> list[str]:
    rows = []
    for name, field in model.model_fields.items():
        cells = (_type_name(field.annotation), _default(field), field.description or "")
        rows.append(f"| `{name}` | {' | '.join(_cell(cell) for cell in cells)} |")
    return ["| key | kind | default | |", "| --- | --- | --- | --- |", *rows, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is PydanticUndefined:
        return "see there"
    if isinstance(field.default, BaseModel):
        return ""
    return {None: "null", True: "true", False: "false", (): "[]"}.get(field.default, f"`{field.default}`")


def _type_name(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(argument) for argument in arguments if argument is not type(None))
    if origin is tuple:
        return "list of " + _type_name(arguments[0])
    if origin is dict:
        return f"mapping to {_type_name(arguments[1])}"
    if inspect.isclass(kind) and issubclass(kind, BaseModel):
        name = kind.__name__.removesuffix("Config")
        return f"[{name}](#{name.lower()})"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}.get(kind, str(kind))


def _sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that `model` is made of, each once, in order of appearance; not itself."""
    found: dict[type[BaseModel], None] = {}

    def visit(kind: Any) -> None:
        if inspect.isclass(kind) and issubclass(kind, BaseModel) and kind not in found:
            found[kind] = None
            for field in kind.model_fields.values():
                visit(field.annotation)
        for argument in typing.get_args(kind):
            visit(argument)

    visit(model)
    return [section for section in found if section is not model]


def http_reference() -> str:
    """Every address with its body, from the application's own OpenAPI schema."""
    from atoll.server.app import create_app
    from atoll.server.docs_page import grouped_operations

    # The schema follows from the routes; what would answer them need not be there.
    engine, base, catalog = MagicMock(), MagicMock(), MagicMock()
    engine.max_length = engine.stats().max_rank = 1
    base.name = ""
    lines = ["# HTTP", "", "Made from the server's OpenAPI schema; a running server shows the same at `/docs`.", ""]
    for tag, operations in grouped_operations(create_app(engine, base, catalog).openapi()).items():
        lines += [f"## {tag}", ""]
        for operation in operations:
            lines += [f"### {operation.method} {operation.path}", ""]
            lines += [f"{operation.summary}. {operation.description}", ""]
            if operation.fields:
                rows = [f"| `{f.name}` | {_cell(f.kind)} | {_cell(f.text)} |" for f in operation.fields]
                lines += ["| field | kind | |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def python_reference() -> str:
    """Every public name of `import atoll` with its signature, its docstring and its own public members."""
    import atoll

    lines = ["# Python", "", "Made from the code; [From Python](../python.md) shows how the parts go together.", ""]
    for name in atoll.__all__:
        value = getattr(atoll, name)
        if callable(value):
            lines += [f"## {name}", "", *_entry(f"atoll.{name}", value)]
            lines += _members(name, value) if inspect.isclass(value) else []
    return "\n".join(lines)


def _members(name: str, kind: type) -> list[str]:
    lines = []
    for member, raw in vars(kind).items():
        if member.startswith("_") or not (isinstance(raw, property | staticmethod | classmethod) or callable(raw)):
            continue
        lines += [f"### {name}.{member}", "", *_entry(f"{name}.{member}", getattr(kind, member))]
    return lines


def _entry(name: str, value: Any) -> list[str]:
    return [
        "```python",
        name + ("" if isinstance(value, property) else _signature(value)),
        "```",
        "",
        inspect.getdoc(value) or "",
        "",
    ]


class _Annotation(str):
    """An annotation as it is written, where `inspect` would put it in quotes."""

    __repr__ = str.__str__


def _signature(value: Any) -> str:
    signature = inspect.signature(value)
    parameters = [
        each if each.annotation is each.empty else each.replace(annotation=_Annotation(each.annotation))
        for each in signature.parameters.values()
    ]
    returns = signature.return_annotation
    return str(signature.replace(parameters=parameters, return_annotation=_Annotation(returns)))


PAGES: dict[str, Callable[[], str]] = {
    "architecture.md": architecture,
    "changelog.md": changelog,
    "decisions/index.md": decisions,
    "reference/files.md": files_reference,
    "reference/http.md": http_reference,
    "reference/python.md": python_reference,
}
