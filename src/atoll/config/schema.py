"""JSON Schema of the YAML files, for editors."""

from __future__ import annotations

from typing import Any, Literal

from atoll.config.base import ConfigModel
from atoll.config.fleet import FleetConfig
from atoll.config.task import TaskConfig

SchemaKind = Literal["fleet", "task"]
_MODELS: dict[SchemaKind, type[ConfigModel]] = {"fleet": FleetConfig, "task": TaskConfig}


def json_schema(kind: SchemaKind) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a fleet file or a task file."""
    schema = _MODELS[kind].model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": f"Atoll {kind} file"}
