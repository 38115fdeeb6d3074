"""The JSON Schemas agree with what the loader takes and refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from typer import Typer
from typer.testing import CliRunner

from atoll.cli.schema import schema as schema_command
from atoll.config.schema import SchemaKind, json_schema

FLEET = {"adapters": {"a": {"task": "x", "adapter": {"r": 8, "target_modules": ["q_proj"]}}}}
TASK: dict[str, Any] = {
    "name": "t",
    "dataset": {"train": "a.csv", "test": {"generated": "sql"}},
    "prompt": {"template": "{x}"},
    "target_column": "y",
    "metrics": ["accuracy"],
}


@pytest.mark.parametrize(("kind", "document"), [("fleet", FLEET), ("task", TASK)])
def test_good_documents_pass(kind: SchemaKind, document: dict[str, Any]) -> None:
    schema = json_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)


@pytest.mark.parametrize(
    ("kind", "document"),
    [
        ("fleet", {}),
        ("fleet", FLEET | {"lr": 1}),
        ("fleet", FLEET | {"trainer": {"epochs": 0}}),
        ("fleet", {"adapters": {"a": {"task": "x", "trainer": {"token_budget": 1}}}}),
        ("fleet", {"adapters": {"Bad Name": {"task": "x"}}}),
        ("task", TASK | {"metrics": []}),
        ("task", TASK | {"dataset": {"train": {"generated": "nothing"}}}),
        ("task", TASK | {"labels": [1]}),
    ],
)
def test_bad_documents_fail(kind: SchemaKind, document: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_schema(kind))


@pytest.mark.parametrize("kind", ["fleet", "task"])
def test_every_key_is_described(kind: SchemaKind) -> None:
    def keys(node: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict):
            yield from node.get("properties", {}).items()
            for child in node.values():
                yield from keys(child)
        elif isinstance(node, list):
            for child in node:
                yield from keys(child)

    described = dict(keys(json_schema(kind)))
    assert len(described) > 15
    assert [name for name, key in described.items() if not key.get("description")] == []


def test_the_command_prints_it() -> None:
    app = Typer()
    app.command()(schema_command)
    result = CliRunner().invoke(app, ["task"])
    assert result.exit_code == 0
    assert json.loads(result.output) == json_schema("task")
    assert CliRunner().invoke(app, ["nothing"]).exit_code == 2
