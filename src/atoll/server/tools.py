"""Functions that a model may call, and what that means for its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atoll.server.calls import AnswerReader, ForcedCallReader, FreeAnswerReader, TextReader
from atoll.server.forms import JsonForm

NAME_PATTERN = r"^[a-zA-Z0-9_-]{1,64}$"

# The very form that models know from their training, and one in which the arguments are found before they end.
_CALL_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_LENIENT = {"lenient": True, "coerce_one_of": True}
# Keywords by which a schema with properties says that there may be others.
_ADDING = frozenset({"additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"})
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Function:
    """A function of the client's. parameters: the JSON schema of its arguments; strict: refuse schemas that cannot be
    kept to the letter, instead of keeping what can be kept."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    def as_told(self) -> dict[str, Any]:
        """As chat templates take it."""
        told: dict[str, Any] = {"name": self.name, "description": self.description}
        return {
            "type": "function",
            "function": told | {"parameters": dict(_NO_PARAMETERS if self.parameters is None else self.parameters)},
        }


@dataclass(frozen=True)
class ToolUse:
    """What one request says of functions.

    offered: those that the model is told of and may call if it likes. forced: it must call one of these, and can say
    nothing else. several: whether an answer may have more than one call.
    """

    offered: tuple[Function, ...] = ()
    forced: tuple[Function, ...] = ()
    several: bool = True

    @property
    def told(self) -> list[dict[str, Any]]:
        """As chat templates take them."""
        return [function.as_told() for function in self.offered]

    def form(self) -> JsonForm | None:
        """What a forced call must look like; None where the answer is free."""
        if not self.forced:
            return None
        is_strict = all(function.strict for function in self.forced)
        options = _CALL_OPTIONS if is_strict else _CALL_OPTIONS | _LENIENT
        if len(self.forced) == 1:
            return JsonForm(_call_schema(self.forced[0], "#") | {"x-guidance": options})
        schemas = [_call_schema(function, f"#/anyOf/{place}") for place, function in enumerate(self.forced)]
        return JsonForm({"anyOf": schemas, "x-guidance": options})

    def reader(self) -> AnswerReader:
        """A reader for one answer."""
        if self.forced:
            return ForcedCallReader()
        names = frozenset(function.name for function in self.offered)
        return FreeAnswerReader(names, self.several) if names else TextReader()


def lenient(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same schema, with keywords that cannot be kept left out of account instead of refused."""
    return {**schema, "x-guidance": _LENIENT}


def _call_schema(function: Function, place: str) -> dict[str, Any]:
    parameters = _NO_PARAMETERS if function.parameters is None else {"type": "object", **function.parameters}
    if "properties" in parameters and not _ADDING.intersection(parameters):
        parameters = {**parameters, "additionalProperties": False}  # nobody's function takes what it does not name
    return {
        "type": "object",
        "properties": {
            "name": {"const": function.name},
            "arguments": _moved(parameters, f"{place}/properties/arguments"),
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    """A schema as a part of another one: its references to itself begin at its new place."""
    if isinstance(schema, Mapping):
        return {
            key: place + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, place)
            for key, value in schema.items()
        }
    return [_moved(item, place) for item in schema] if isinstance(schema, list) else schema
