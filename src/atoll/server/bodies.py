"""What both dialects' request bodies share: null means unset, and nothing is ignored in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from atoll.errors import RequestInvalid


class _FirstFault(FailFast):
    __hash__ = object.__hash__  # pydantic's own cannot be part of `| None`


T = TypeVar("T")
ListOf = Annotated[list[T], _FirstFault()]
"""A list that is refused at its first wrong element: two megabytes of them must not become as many errors."""
MAX_KEYS = 512
"""Of an object in a body: errors come one for each key."""


class Body(BaseModel):
    """A part of a request's body. Types are strict: a number in quotes is refused.

    not_implemented: parameters that the dialect has and Atoll does not, each with the value that means "off". That
    value is accepted, any other is refused by name.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
    not_implemented: ClassVar[Mapping[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_what_is_off(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        _check_num_keys("the body", fields)
        kept = {}
        for name, value in fields.items():
            if isinstance(value, dict):
                _check_num_keys(name, value)
            if value is None or (name in cls.not_implemented and _is_same(value, cls.not_implemented[name])):
                continue
            if name in cls.not_implemented:
                raise RequestInvalid(f"the parameter {name!r} is not implemented", where=name, mend="leave it out")
            kept[name] = value
        return kept

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema, with what `_drop_what_is_off` lets pass."""
        schema = handler(core_schema)
        described = handler.resolve_ref_schema(schema)
        fields = described.setdefault("properties", {})
        for name in fields.keys() - set(described.get("required", ())):
            fields[name] = _or_null(fields[name])
        for name, off in cls.not_implemented.items():
            fields[name] = {"enum": [off, None], "description": "Not implemented: it may be said to be off."}
        return schema


def _check_num_keys(name: str, fields: dict[str, Any]) -> None:
    if len(fields) > MAX_KEYS:
        raise RequestInvalid(f"{name[:80]} has {len(fields)} keys", mend=f"it may have at most {MAX_KEYS}")


def _is_same(value: Any, off: Any) -> bool:
    """Equal as JSON has it, where false is no 0."""
    return bool(value == off) and isinstance(value, bool) == isinstance(off, bool)


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    null = {"type": "null"}
    if null in field.get("anyOf", ()):
        return field
    about = {key: field[key] for key in ("title", "description", "default") if key in field}
    return about | {"anyOf": [{key: value for key, value in field.items() if key not in about}, null]}
