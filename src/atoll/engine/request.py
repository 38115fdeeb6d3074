"""What goes into the engine and what comes out: requests, events and completions."""

from __future__ import annotations

import math
import reprlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from atoll.errors import AtollError, RequestInvalid

if TYPE_CHECKING:
    from atoll.adapters.store import StoredAdapter
    from atoll.text.constraint import TokenConstraint

MAX_SEED = 2**64 - 1
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 32
MAX_STOP_CHARS = 256
MAX_LOGIT_BIASES = 300

FinishReason = Literal["stop", "length", "abort"]
StopReason = Literal["eos", "stop_string"]
TopLogprobs = tuple[tuple[int, float], ...]
"""The most probable tokens of one position with their log-probabilities, best first."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request's tokens are chosen. Raises RequestInvalid for a value out of range.

    temperature 0 is greedy; top_k 0, top_p 1 and typical_p 1 are off. Without a seed the engine draws one and reports
    it. Stop strings are never part of the output. logprobs is the number of alternatives reported for each token. With
    ignore_eos only max_new_tokens and stop strings end the completion.

    repetition_penalty divides the positive logits of tokens in prompt and completion, and multiplies the negative ones;
    1 is off. frequency_penalty is taken from a token's logit for each time it stands in the completion,
    presence_penalty once. logit_bias: (token id, what is added to its logit). Penalties and biases change what is
    chosen, not the log-probabilities reported: those are the model's own.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int = 0

    def __post_init__(self) -> None:
        _check("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1")
        _check("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 (greedy) or a positive number")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _check("top_k", self.top_k, self.top_k >= 0, "0 (off) or a positive number")
        _check("typical_p", self.typical_p, 0 < self.typical_p <= 1, "above 0 and at most 1")
        self._check_penalties()
        _check("logprobs", self.logprobs, 0 <= self.logprobs <= MAX_LOGPROBS, f"from 0 to {MAX_LOGPROBS}")
        stops_fit = len(self.stop) <= MAX_STOP_STRINGS and all(1 <= len(stop) <= MAX_STOP_CHARS for stop in self.stop)
        _check("stop", self.stop, stops_fit, f"at most {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_CHARS} characters")
        if self.seed is not None:
            _check("seed", self.seed, 0 <= self.seed <= MAX_SEED, "from 0 to 2**64 - 1")

    @property
    def has_penalties(self) -> bool:
        """Whether anything changes the logits before a token is chosen."""
        penalties = self.frequency_penalty, self.presence_penalty
        return self.repetition_penalty != 1 or any(penalties) or bool(self.logit_bias)

    def _check_penalties(self) -> None:
        repetition = self.repetition_penalty
        _check("repetition_penalty", repetition, 0 < repetition < math.inf, "a positive number, 1 for none")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            _check(name, value, -2 <= value <= 2, "from -2 to 2")
        ids = [token_id for token_id, _ in self.logit_bias]
        biases_fit = all(token_id >= 0 and -100 <= bias <= 100 for token_id, bias in self.logit_bias)
        are_few = len(ids) <= MAX_LOGIT_BIASES and len(set(ids)) == len(ids)
        allowed = f"at most {MAX_LOGIT_BIASES} different token ids, each with a number from -100 to 100"
        _check("logit_bias", self.logit_bias, biases_fit and are_few, allowed)


def _check(name: str, value: object, is_valid: bool, allowed: str) -> None:
    if not is_valid:
        raise RequestInvalid(f"{name} is {reprlib.repr(value)}", where=name, mend=f"{name} must be {allowed}")


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds since the request was submitted: until its first step, its first token, its end."""

    queue_s: float
    first_token_s: float
    total_s: float


@dataclass(frozen=True, kw_only=True)
class TokenEvent:
    """One new token. text is what became certain with it: it may be empty, and never holds part of a stop string."""

    request_id: str
    token_id: int
    text: str
    logprob: float
    top: TopLogprobs = ()


@dataclass(frozen=True, slots=True)
class PromptToken:
    """One token of the prompt under the model: the first one has no log-probability."""

    token_id: int
    logprob: float | None
    top: TopLogprobs = ()


@dataclass(frozen=True, kw_only=True)
class FinishEvent:
    """The end of a request, after its last TokenEvent.

    text is the sum of the events' texts. token_ids holds every generated token, an end token included. seed is the
    one that was used, None for a greedy request. num_cached_tokens: tokens of the prompt that the prefix cache had.
    prompt_tokens and embedding are filled for requests that asked for them.
    """

    request_id: str
    finish_reason: FinishReason
    stop_reason: StopReason | None
    text: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    seed: int | None
    timings: Timings
    num_cached_tokens: int = 0
    prompt_tokens: tuple[PromptToken, ...] = ()
    embedding: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ErrorEvent:
    """The end of a request that failed."""

    request_id: str
    error: AtollError


Event = TokenEvent | FinishEvent | ErrorEvent


def ignore(event: Event) -> None:
    """Drop an event: for callers that only want the completion."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to be completed, or with `embed` to be turned into a vector.

    adapter None is the bare base model. Tenants share the engine evenly, and the prefix cache not at all. priority:
    among one tenant's requests smaller goes first. constraint: the grammar of the completion; the engine owns it from
    now on. prompt_logprobs: how many alternatives to report for each token of the prompt; None to report nothing.
    embed: no token is generated; the end has the mean over the prompt of the last layer's normed hidden states.
    on_event is called from the step thread, so it must not block; if it raises, this request alone fails.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    adapter: StoredAdapter | None = None
    tenant: str = ""
    priority: int = 0
    constraint: TokenConstraint | None = None
    prompt_logprobs: int | None = None
    embed: bool = False
    on_event: Callable[[Event], None] = ignore
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def needs_whole_prompt(self) -> bool:
        """Whether every token of the prompt has to be computed, even if its keys and values are cached."""
        return self.embed or self.prompt_logprobs is not None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """Everything that became of one request: `finish`, or `error` where it failed. tokens: its events in order."""

    request_id: str
    tokens: tuple[TokenEvent, ...] = ()
    finish: FinishEvent | None = None
    error: AtollError | None = None

    @property
    def text(self) -> str:
        """The completion's text; what had come until then where the request failed."""
        return self.finish.text if self.finish else "".join(token.text for token in self.tokens)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token.token_id for token in self.tokens)
