"""The form of an answer, as OpenAI's clients and vLLM's ask for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from atoll.errors import RequestInvalid
from atoll.server.bodies import Body, ListOf
from atoll.server.forms import Form, JsonForm, PatternForm
from atoll.server.tools import NAME_PATTERN, lenient
from atoll.text.constraint import MAX_SCHEMA_DEPTH, nesting_depth

MAX_NESTED = MAX_SCHEMA_DEPTH - 4
"""Levels of a client's schema; a few more are added around the arguments of a function."""

_SPECIAL_IN_PATTERNS = re.compile(r"[\\.+*?()|\[\]{}^$]")


class JsonSchema(Body):
    """A named schema. `name` and `description` are for the client's own use."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str = ""
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """Any object without one."""
    strict: bool = False
    """Refuse a schema with keywords that cannot be kept, instead of leaving these out of account."""


class ResponseFormat(Body):
    """What form an answer must have. It is kept by the sampler, not asked of the model."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """The schema of a json_object, as LoRAX has it; any object without one."""

    @model_validator(mode="after")
    def _has_its_schema_only(self) -> Self:
        if self.schema_ is not None and self.type != "json_object":
            mend = "send it as json_schema.schema" if self.type == "json_schema" else "leave it out"
            raise RequestInvalid("`schema` is for the type json_object", where="response_format.schema", mend=mend)
        if (self.json_schema is None) == (self.type == "json_schema"):
            what = "needs `json_schema`" if self.json_schema is None else "has no schema"
            raise RequestInvalid(f"the type {self.type} {what}", where="response_format.json_schema")
        return self

    def form(self) -> Form | None:
        """The same, without dialect; None for plain text."""
        if self.json_schema is not None:
            return json_form(self.json_schema.schema_, self.json_schema.strict, "response_format")
        return None if self.type == "text" else json_form(self.schema_, False, "response_format")


class StructuredOutputs(Body):
    """vLLM's way to ask for a form: one of these."""

    json_: dict[str, Any] | None = Field(default=None, alias="json")
    """A schema."""
    regex: Annotated[str, Field(min_length=1)] | None = None
    """A pattern that the whole answer matches."""
    choice: ListOf[str] | None = Field(default=None, min_length=1)
    """The answers that are allowed."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if sum(form is not None for form in (self.json_, self.regex, self.choice)) != 1:
            raise RequestInvalid("structured_outputs needs one of json, regex and choice", where="structured_outputs")
        return self

    def form(self) -> Form:
        """The same, without dialect."""
        if self.json_ is not None:
            return json_form(self.json_, False, "structured_outputs")
        if self.regex is not None:
            return PatternForm(self.regex)
        return PatternForm("|".join(_SPECIAL_IN_PATTERNS.sub(r"\\\g<0>", text) for text in self.choice or ()))


def json_form(schema: Mapping[str, Any] | None, strict: bool, where: str) -> JsonForm:
    """JSON for a client's schema. Raises RequestInvalid for one that is nested too deep."""
    if not schema:
        return JsonForm({})
    check_nesting(schema, where)
    return JsonForm(schema if strict else lenient(schema))


def check_nesting(schema: Mapping[str, Any], where: str) -> None:
    """Raise RequestInvalid for a schema that is nested too deep."""
    if nesting_depth(schema) > MAX_NESTED:
        raise RequestInvalid(f"the schema is nested deeper than {MAX_NESTED} levels", where=where)
