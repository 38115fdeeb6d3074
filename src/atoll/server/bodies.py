"""What both dialects' request bodies share: null means unset, and nothing is ignored in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from atoll.errors import RequestInvalid


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
        kept = {}
        for name, value in fields.items():
            if value is None or (name in cls.not_implemented and value == cls.not_implemented[name]):
                continue
            if name in cls.not_implemented:
                raise RequestInvalid(f"the parameter {name!r} is not implemented", where=name, mend="leave it out")
            kept[name] = value
        return kept
