"""The body of POST /v1/responses: a conversation, all of it in the request."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from atoll.engine.request import MAX_LOGPROBS
from atoll.errors import RequestInvalid
from atoll.server.bodies import Body, ListOf
from atoll.server.forms import Form, JsonForm
from atoll.server.openai_bodies import SamplingBody
from atoll.server.openai_forms import JsonSchema, json_form
from atoll.server.openai_messages import CalledFunction, FunctionBody, FunctionName, NamedFunction, ToolMode, tool_use
from atoll.server.prepare import Ask
from atoll.server.prompts import Conversation
from atoll.server.tools import ToolUse
from atoll.text.chat_tools import Message

MAX_METADATA = 16


class ContentPart(Body):
    """A part of a message; only text is understood."""

    not_implemented: ClassVar = {"annotations": []}

    type: Literal["input_text", "output_text", "text"]
    text: str
    logprobs: ListOf[Any] = Field(default=[])
    """An answer has them; they change nothing here."""


def _text(content: str | list[ContentPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class _Item(Body):
    """What items of an answer have when they are sent back: it changes nothing."""

    id: str = ""
    status: Literal["in_progress", "completed", "incomplete"] = "completed"


class MessageItem(_Item):
    """A message."""

    not_implemented: ClassVar = {"phase": "final_answer"}

    type: Literal["message"]
    role: Literal["user", "assistant", "system", "developer"]
    content: str | ListOf[ContentPart]


class FunctionCallItem(_Item):
    """A call that the assistant made."""

    type: Literal["function_call"]
    call_id: str
    name: FunctionName
    arguments: str


class FunctionCallOutputItem(_Item):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | ListOf[ContentPart]


Item = Annotated[MessageItem | FunctionCallItem | FunctionCallOutputItem, Field(discriminator="type")]


class FunctionTool(FunctionBody):
    """A function that the model may call."""

    type: Literal["function"]


class FunctionChoice(NamedFunction):
    """A function that has to be called."""

    type: Literal["function"]


class JsonSchemaFormat(JsonSchema):
    """JSON for a schema."""

    type: Literal["json_schema"]


class PlainFormat(Body):
    """Text, or any JSON object."""

    type: Literal["text", "json_object"] = "text"


class TextConfig(Body):
    """What the answer's text must be."""

    not_implemented: ClassVar = {"verbosity": "medium"}

    format: JsonSchemaFormat | PlainFormat = Field(default=PlainFormat(), discriminator="type")


class NoStreamOptions(Body):
    """OpenAI's only one here adds noise to a stream; it is off."""

    not_implemented: ClassVar = {"include_obfuscation": False}


class ResponseBody(SamplingBody):
    """POST /v1/responses. Nothing is stored, so nothing can be continued: send the whole conversation."""

    not_implemented: ClassVar = {
        "background": False,
        "context_management": [],
        "conversation": "",
        "moderation": {},
        "previous_response_id": "",
        "prompt": {},
        "reasoning": {},
        "store": False,
        "truncation": "disabled",
    }

    input: str | ListOf[Item]
    instructions: str = ""
    """A system message before the others."""
    max_output_tokens: int | None = Field(default=None, gt=0)
    metadata: dict[str, str] = Field(default={}, max_length=MAX_METADATA)
    """Given back with the answer."""
    text: TextConfig = TextConfig()
    tools: ListOf[FunctionTool] = Field(default=[])
    tool_choice: ToolMode | FunctionChoice | None = None
    parallel_tool_calls: bool = True
    """false: not more than one call in an answer. A forced call is always one."""
    include: ListOf[Literal["message.output_text.logprobs"]] = Field(default=[])
    top_logprobs: int = Field(default=0, ge=0, le=MAX_LOGPROBS)
    stream_options: NoStreamOptions = NoStreamOptions()

    @field_validator("input", mode="before")
    @classmethod
    def _items_are_messages(cls, given: Any) -> Any:
        if not isinstance(given, list):
            return given
        return [{"type": "message", **item} if isinstance(item, dict) else item for item in given]

    def form(self) -> Form | None:
        """The form of the answer, None for plain text."""
        wanted = self.text.format
        if isinstance(wanted, JsonSchemaFormat):
            return json_form(wanted.schema_, wanted.strict, "text.format")
        return None if wanted.type == "text" else JsonForm({})

    def tool_use(self) -> ToolUse:
        """What the request says of functions. Raises RequestInvalid."""
        functions = [tool.function() for tool in self.tools]
        return tool_use(functions, self.tool_choice, self.parallel_tool_calls, has_form=self.form() is not None)

    def ask(self) -> Ask:
        """The same, without dialect."""
        use = self.tool_use()
        return self.sampling_ask(
            Conversation(self._messages(), use.told),
            max_new_tokens=self.max_output_tokens,
            num_alternatives=self.top_logprobs,
            form=use.form() or self.form(),
        )

    def _messages(self) -> list[Message]:
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        items = [self.input] if isinstance(self.input, str) else self.input
        for item in items:
            if isinstance(item, str):
                messages.append({"role": "user", "content": item})
            elif isinstance(item, MessageItem):
                role = "system" if item.role == "developer" else item.role
                messages.append({"role": role, "content": _text(item.content)})
            elif isinstance(item, FunctionCallOutputItem):
                messages.append({"role": "tool", "content": _text(item.output), "tool_call_id": item.call_id})
            else:
                _add_call(messages, item)
        if not any(message["content"] or "tool_calls" in message for message in messages):
            raise RequestInvalid("the input is empty", where="input")
        return list(messages)


def _add_call(messages: list[dict[str, Any]], item: FunctionCallItem) -> None:
    """Calls belong to the assistant's message before them."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    function = CalledFunction(name=item.name, arguments=item.arguments)
    call = {"id": item.call_id, "type": "function", "function": function.as_told()}
    messages[-1].setdefault("tool_calls", []).append(call)
