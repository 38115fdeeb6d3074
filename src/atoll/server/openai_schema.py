"""What OpenAI's dialect answers, as its OpenAPI document describes it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from atoll.server.errors import COMMON_STATUSES


class _Part(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid", protected_namespaces=())


class ErrorContent(_Part):
    """What went wrong, and how to mend it."""

    message: str
    type: str
    param: str | None
    """The parameter that is wrong."""
    code: str | None


class OpenAIError(_Part):
    """An error."""

    error: ErrorContent


class Model(_Part):
    """The base model, or an adapter."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    """The exact revision of an adapter."""
    parent: str | None
    """The base model of an adapter."""
    columns: list[str] | None
    """The columns of an adapter's template; null where it has none, and for the base."""


class ModelList(_Part):
    """All that the caller may use."""

    object: Literal["list"]
    data: list[Model]


class PromptTokensDetails(_Part):
    """Of the prompt's tokens."""

    cached_tokens: int
    """Those that were known already."""


class Usage(_Part):
    """Tokens of all answers; each prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TextLogprobs(_Part):
    """One entry for each token; null for the first token of an echoed prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Where in `text` each token begins, in characters."""


class TextChoice(_Part):
    """One answer."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(_Part):
    """The answers to one or several prompts, those to one prompt together."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class TokenLogprob(_Part):
    """A token that could have been taken. The bytes of several tokens may make one character."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    """A token of the answer."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(_Part):
    """One entry for each token of the answer."""

    content: list[ChosenLogprob]
    refusal: None


class FunctionCall(_Part):
    """A function's name and its arguments as JSON."""

    name: str
    arguments: str


class ToolCallAnswer(_Part):
    """One call."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AnswerMessage(_Part):
    """What the assistant says. `tool_calls` is there only where it calls functions."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCallAnswer] = []


class ChatChoice(_Part):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(_Part):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class EmbeddingAnswer(_Part):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or 32-bit little-endian floats in base64."""


class EmbeddingUsage(_Part):
    """Tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(_Part):
    """The vectors of one or several texts."""

    object: Literal["list"]
    data: list[EmbeddingAnswer]
    model: str
    usage: EmbeddingUsage


class OutputText(_Part):
    """A part of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ChosenLogprob]


class OutputMessage(_Part):
    """What the assistant says."""

    id: str
    type: Literal["message"]
    status: Literal["completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(_Part):
    """A function that the assistant calls."""

    id: str
    type: Literal["function_call"]
    status: Literal["completed", "incomplete"]
    call_id: str
    name: str
    arguments: str


class IncompleteDetails(_Part):
    """Why an answer stops before its end."""

    reason: Literal["max_output_tokens"]


class InputTokensDetails(_Part):
    """Of the prompt's tokens."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(_Part):
    """Of the answer's tokens."""

    reasoning_tokens: int


class ResponseUsage(_Part):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseAnswer(_Part):
    """An answer to a conversation, with what its request said."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: IncompleteDetails | None
    output: list[OutputMessage | OutputCall]
    usage: ResponseUsage
    model: str
    background: bool
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, Any]
    service_tier: Literal["default"]
    store: bool
    temperature: float | None
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"]


_ERRORS = COMMON_STATUSES | {
    400: "The request is not valid, or does not fit the model",
    404: "There is no such model",
    500: "The server failed",
    503: "The server is stopping, or something that it needs is gone for now",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": OpenAIError, "description": description} for status, description in _ERRORS.items()
}
_STREAM_CONTENT: dict[str, Any] = {"text/event-stream": {}}
TEXT_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "It is done", "content": {"text/plain": {"schema": {"type": "string"}}}},
    **ERRORS,
}


def answers(model: Any, *, may_stream: bool = False) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that answers with `model`, or as a stream as well."""
    ok = {"model": model, "description": "The answer"} | ({"content": _STREAM_CONTENT} if may_stream else {})
    return {200: ok} | ERRORS
