"""Messages and functions of OpenAI's chat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from atoll.errors import RequestInvalid
from atoll.server.bodies import Body, ListOf
from atoll.server.openai_forms import MAX_NESTED, check_nesting
from atoll.server.tools import NAME_PATTERN, Function, ToolUse
from atoll.text.chat_tools import Message
from atoll.text.constraint import nesting_depth

MAX_FUNCTIONS = 128

FunctionName = Annotated[str, Field(pattern=NAME_PATTERN)]


class TextPart(Body):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """What the assistant called."""

    name: FunctionName
    arguments: str = "{}"
    """JSON, as the model wrote it."""

    def as_told(self) -> dict[str, Any]:
        """As chat templates take it: with arguments as an object, where they are one."""
        return {"name": self.name, "arguments": _object_or_text(self.arguments)}


class ToolCall(Body):
    """One call in an assistant's message."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Body):
    """One message of a conversation."""

    not_implemented: ClassVar = {"refusal": "", "audio": {}, "function_call": {}, "annotations": []}

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | ListOf[TextPart] = ""
    name: Annotated[str, Field(max_length=64)] = ""
    """Handed to the chat template, which may have no use for it."""
    tool_calls: ListOf[ToolCall] = Field(default=[])
    tool_call_id: str = ""
    """Which call a tool's message answers."""

    @model_validator(mode="after")
    def _belongs_to_its_role(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise RequestInvalid("tool_calls are an assistant's", where="messages.tool_calls")
        if self.tool_call_id and self.role != "tool":
            raise RequestInvalid("tool_call_id is for messages of the role tool", where="messages.tool_call_id")
        return self

    def message(self) -> Message:
        """As chat templates take it; they know a developer as the system."""
        message: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content if isinstance(self.content, str) else "".join(part.text for part in self.content),
        }
        if self.name:
            message["name"] = self.name
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": call.function.as_told()} for call in self.tool_calls
            ]
        return message


class FunctionBody(Body):
    """A function that the model may call."""

    name: FunctionName
    description: str = ""
    parameters: dict[str, Any] | None = None
    """The JSON schema of the arguments, an object's; no arguments without it."""
    strict: bool = False
    """Refuse a schema with keywords that a forced call cannot keep, instead of leaving these out of account."""

    @model_validator(mode="after")
    def _takes_an_object(self) -> Self:
        if self.parameters is not None:
            check_nesting(self.parameters, "tools")
            if self.parameters.get("type", "object") != "object":
                raise RequestInvalid(f"the parameters of {self.name} are no object's schema", where="tools")
        return self

    def function(self) -> Function:
        """The same, without dialect."""
        return Function(self.name, self.description, self.parameters, self.strict)


class ToolBody(Body):
    """A tool; only functions are known."""

    type: Literal["function"]
    function: FunctionBody


class NamedFunction(Body):
    """A function's name."""

    name: FunctionName


class NamedTool(Body):
    """A function that has to be called."""

    type: Literal["function"]
    function: NamedFunction


ToolMode = Literal["none", "auto", "required"]


def tool_use(
    functions: Sequence[Function], choice: ToolMode | str | NamedFunction | None, several: bool, *, has_form: bool
) -> ToolUse:
    """What a request says of functions. has_form: the answer must have another form. Raises RequestInvalid."""
    names = [function.name for function in functions]
    if len(names) > MAX_FUNCTIONS or len(set(names)) < len(names):
        what = f"there are more than {MAX_FUNCTIONS} tools" if len(names) > MAX_FUNCTIONS else "two tools have one name"
        raise RequestInvalid(what, where="tools")
    if choice == "none" or (not functions and choice in (None, "auto")):
        return ToolUse()
    if has_form:
        mend = "leave one of them out, or set tool_choice to none"
        raise RequestInvalid("an answer cannot have a form and call tools", where="response_format", mend=mend)
    if choice in (None, "auto"):
        return ToolUse(offered=tuple(functions), several=several)
    forced = [function for function in functions if choice == "required" or function.name == _name(choice)]
    if not forced:
        raise RequestInvalid("tool_choice names no tool of this request", where="tool_choice")
    return ToolUse(offered=tuple(functions), forced=tuple(forced), several=False)


def _name(choice: str | NamedFunction | None) -> str | None:
    return choice.name if isinstance(choice, NamedFunction) else choice


def _object_or_text(arguments: str) -> Any:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) and nesting_depth(value) <= MAX_NESTED else arguments
