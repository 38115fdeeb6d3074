"""How OpenAI's dialect writes answers: heads, usage and log-probabilities."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atoll.engine import FinishEvent, TokenEvent
from atoll.engine.request import PromptToken
from atoll.text.token_text import token_text_of

if TYPE_CHECKING:
    from atoll.model.load import BaseModel

_LEAST_LOGPROB = -9999.0  # JSON has no infinity; this is what OpenAI writes
ShownToken = TokenEvent | PromptToken


@dataclass(frozen=True)
class Head:
    """What all parts of one answer begin with."""

    prefix: str
    kind: str
    model: str
    answer_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def with_choices(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """An answer, or a chunk of one."""
        return {
            "id": f"{self.prefix}-{self.answer_id}",
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def usage(finishes: Sequence[FinishEvent], per_prompt: int) -> dict[str, Any]:
    """The tokens of all answers; each prompt counts once. finishes: in order, `per_prompt` for each prompt."""
    prompts = finishes[::per_prompt]
    num_prompt = sum(finish.num_prompt_tokens for finish in prompts)
    num_new = sum(len(finish.token_ids) for finish in finishes)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_new,
        "total_tokens": num_prompt + num_new,
        "prompt_tokens_details": {"cached_tokens": sum(finish.num_cached_tokens for finish in prompts)},
    }


class LogprobWriter:
    """Writes tokens with their log-probabilities, in the shapes of both kinds of completion.

    The token that ends an answer is not shown: it is no part of the text.
    """

    def __init__(self, base: BaseModel) -> None:
        self._text = token_text_of(base.tokenizer)
        self._end_ids = base.end_ids

    def chat(self, tokens: Sequence[TokenEvent]) -> dict[str, Any]:
        """`logprobs` of a chat's choice."""
        content = [
            self._chat_token(token.token_id, token.logprob)
            | {"top_logprobs": [self._chat_token(token_id, logprob) for token_id, logprob in token.top]}
            for token in tokens
            if token.token_id not in self._end_ids
        ]
        return {"content": content, "refusal": None}

    def legacy(self, tokens: Sequence[ShownToken], offsets: TextOffsets) -> dict[str, Any]:
        """`logprobs` of a text completion's choice."""
        shown = [token for token in tokens if token.token_id not in self._end_ids or isinstance(token, PromptToken)]
        return {
            "tokens": [self._text.text_of(token.token_id) for token in shown],
            "token_logprobs": [None if token.logprob is None else _finite(token.logprob) for token in shown],
            "top_logprobs": [self._legacy_top(token) for token in shown],
            "text_offset": [offsets.next(self._shown_bytes(token.token_id)) for token in shown],
        }

    def _chat_token(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._text.text_of(token_id),
            "logprob": _finite(logprob),
            "bytes": list(self._text.bytes_of(token_id)),
        }

    def _legacy_top(self, token: ShownToken) -> dict[str, float] | None:
        """The alternatives and the token itself, as OpenAI has them; None where none were asked for."""
        if not token.top or token.logprob is None:
            return None
        pairs = [*token.top, (token.token_id, token.logprob)]
        return {self._text.text_of(token_id): _finite(logprob) for token_id, logprob in pairs}

    def _shown_bytes(self, token_id: int) -> bytes:
        return self._text.bytes_of(token_id) if self._text.is_shown(token_id) else b""


class TextOffsets:
    """Where each token begins in the text of its choice, in characters."""

    def __init__(self, start: int = 0) -> None:
        self._place = start
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def next(self, content: bytes) -> int:
        """The place of the next token, whose bytes these are."""
        place = self._place
        self._place += len(self._decoder.decode(content))
        return place


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)
