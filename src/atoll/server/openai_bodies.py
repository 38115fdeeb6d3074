"""The bodies of OpenAI's dialect, and the parameters that other servers added to it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from atoll.engine.request import MAX_SEED
from atoll.errors import RequestInvalid
from atoll.server.bodies import Body
from atoll.server.prepare import Ask
from atoll.server.prompts import Message, Prompt

DEFAULT_TEMPERATURE = 1.0
DEFAULT_COMPLETION_TOKENS = 16

_StopString = Annotated[str, Field(min_length=1)]
_NOT_IMPLEMENTED: dict[str, Any] = {
    "frequency_penalty": 0,
    "logit_bias": {},
    "n": 1,
    "presence_penalty": 0,
    "repetition_penalty": 1,
}


class StreamOptions(Body):
    """What a stream says beside the text."""

    include_usage: bool = False
    """Send one more chunk at the end, with the token counts."""


class _GenerationBody(Body):
    """What completions and chat completions share."""

    model: str = ""
    """An adapter's name or name@revision; the base model's name, or nothing, for the base."""
    adapter_source: Literal["local"] | None = None
    """`local` when `model` is a path below one of the server's adapter roots."""
    columns: dict[str, str] | None = None
    """The columns of the adapter's own template, instead of a prompt."""
    max_tokens: int | None = Field(default=None, gt=0)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    """0 or unset: off."""
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    stop: list[_StopString] = Field(default=[])
    """A string or a list of strings that end the answer."""
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str = ""
    """The caller's name for its user. It changes nothing here."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_string(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options.include_usage and not self.stream:
            raise RequestInvalid("stream_options is for streams", where="stream_options", mend="set `stream` to true")
        return self

    def _ask(self, prompt: Prompt, max_new_tokens: int | None, default_max_new_tokens: int | None) -> Ask:
        if bool(prompt) == (self.columns is not None):
            given = "both" if prompt else "neither"
            raise RequestInvalid(f"send either a prompt or `columns`, not {given}", where="columns")
        return Ask(
            prompt=prompt if self.columns is None else self.columns,
            adapter_id=self.model,
            adapter_source=self.adapter_source,
            max_new_tokens=max_new_tokens,
            stop=tuple(self.stop),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            ignore_eos=self.ignore_eos,
            default_temperature=DEFAULT_TEMPERATURE,
            default_max_new_tokens=default_max_new_tokens,
        )


class CompletionBody(_GenerationBody):
    """POST /v1/completions."""

    not_implemented: ClassVar = _NOT_IMPLEMENTED | {"best_of": 1, "echo": False, "logprobs": 0, "suffix": ""}

    prompt: str = ""
    """One text. It is taken as it is: no template is applied."""

    def ask(self) -> Ask:
        """The same, without dialect."""
        return self._ask(self.prompt, self.max_tokens, DEFAULT_COMPLETION_TOKENS)


class TextPart(Body):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One message of a conversation."""

    not_implemented: ClassVar = {"name": "", "tool_calls": [], "refusal": "", "audio": {}, "function_call": {}}

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] = ""

    def message(self) -> Message:
        """As chat templates take it; they know a developer as the system."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatBody(_GenerationBody):
    """POST /v1/chat/completions."""

    not_implemented: ClassVar = _NOT_IMPLEMENTED | {
        "functions": [],
        "function_call": "none",
        "logprobs": False,
        "modalities": ["text"],
        "parallel_tool_calls": True,
        "reasoning_effort": "none",
        "response_format": {"type": "text"},
        "tool_choice": "none",
        "tools": [],
        "top_logprobs": 0,
    }

    messages: list[ChatMessage] = Field(default=[])
    max_completion_tokens: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise RequestInvalid(
                "max_tokens and max_completion_tokens say different things", where="max_tokens", mend="send one of them"
            )
        return self

    def ask(self) -> Ask:
        """The same, without dialect."""
        prompt = [message.message() for message in self.messages]
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self._ask(prompt, limit, default_max_new_tokens=None)
