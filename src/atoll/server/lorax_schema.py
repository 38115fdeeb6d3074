"""What LoRAX's dialect answers, as its OpenAPI document describes it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from atoll.server.errors import COMMON_STATUSES


class _Part(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid", protected_namespaces=())


class AlternativeToken(_Part):
    """A token that could have been taken."""

    id: int
    text: str
    logprob: float


class Token(_Part):
    """A generated token. Its text is what became certain with it, so it may be empty."""

    id: int
    text: str
    logprob: float
    special: bool
    skipped: bool
    alternative_tokens: list[AlternativeToken] | None = None


class PrefillToken(_Part):
    """A token of the prompt; the first one has no log-probability."""

    id: int
    text: str
    logprob: float | None


FinishReason = Literal["length", "eos_token", "stop_sequence"]


class BestOfSequence(_Part):
    """An answer that another one was better than."""

    generated_text: str
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]


class StreamDetails(_Part):
    """How a stream ended."""

    finish_reason: FinishReason
    prompt_tokens: int
    generated_tokens: int
    skipped_tokens: int
    seed: int | None


class Details(StreamDetails):
    """Everything about an answer."""

    prefill: list[PrefillToken]
    tokens: list[Token]
    best_of_sequences: list[BestOfSequence] | None


class Generated(_Part):
    """An answer."""

    generated_text: str
    details: Details | None


class StreamEvent(_Part):
    """One event of a stream; the last one has the whole text, and the details if they are wanted."""

    token: Token
    generated_text: str | None
    details: StreamDetails | None


class Embedding(_Part):
    """The mean of the last layer's hidden states."""

    embeddings: list[float]


class SimpleToken(_Part):
    """A token of a text, and the characters that it stands for: those from `start` to before `stop`."""

    id: int
    text: str
    start: int
    stop: int


class Info(_Part):
    """The base model and the server's limits, in LoRAX's words."""

    model_id: str
    model_sha: str
    """The digest of the base model's config and weights."""
    model_dtype: str
    model_device_type: str
    model_pipeline_tag: str
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_length: int
    max_total_tokens: int
    version: str
    """Of Atoll."""
    sha: str | None
    docker_label: str | None
    request_logger_url: str | None


class LoraxError(_Part):
    """An error."""

    error: str
    error_type: str


_ERRORS = COMMON_STATUSES | {
    422: "The request is not valid",
    424: "The adapter cannot be used",
    500: "The server failed, or is stopping",
    503: "The server cannot answer at the moment",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": LoraxError, "description": description} for status, description in _ERRORS.items()
}
HEALTH: dict[int | str, dict[str, Any]] = {
    200: {"description": "The engine runs; the body is empty"},
    503: {"model": LoraxError, "description": "The engine does not run"},
}
# A document cannot yet say what one event of a stream holds.
STREAM_CONTENT: dict[str, Any] = {"text/event-stream": {"schema": {}}}


def answers(model: Any, *, may_stream: bool = False) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that answers with `model`, or as a stream as well."""
    ok = {"model": model, "description": "The answer"} | ({"content": STREAM_CONTENT} if may_stream else {})
    return {200: ok} | ERRORS


STREAM: dict[int | str, dict[str, Any]] = {
    200: {"description": "A `StreamEvent` as JSON for each token", "content": STREAM_CONTENT},
    **ERRORS,
}
