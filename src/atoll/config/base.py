"""What all configuration models share: strict, frozen, documented by attribute docstrings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Text = Annotated[str, Field(min_length=1)]
# YAML has lists only, so tuples must not be strict; their items are.
Strings = Annotated[tuple[Text, ...], Field(strict=False)]


class ConfigModel(BaseModel):
    """A section of a YAML file: unknown keys and values of another type are refused, nothing changes afterwards."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def problem(what: str, mend: str) -> PydanticCustomError:
    """An error for validators to raise; `what` continues a sentence that begins with the key's name."""
    return PydanticCustomError("atoll", "{what}", {"what": what, "mend": mend})


def problem_at(*loc: str | int, value: object, what: str, mend: str) -> ValidationError:
    """Like `problem`, for a model's validator that knows which of its keys is wrong."""
    detail = InitErrorDetails(type=problem(what, mend), loc=loc, input=value)
    return ValidationError.from_exception_data("config", [detail])


def expected(what: str, mend: str) -> WrapValidator:
    """One clear error for a union, where pydantic would report one for each of its members."""

    def validate(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise problem(f"must be {what}", mend) from None

    return WrapValidator(validate)


def check_unique(values: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse a list that names something twice."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise problem(f"lists {value!r} twice", "remove one of the two")
    return values
