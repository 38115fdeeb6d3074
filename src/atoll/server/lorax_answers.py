"""Writes answers as LoRAX does: texts, details and headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from atoll.engine import FinishEvent, Request, TokenEvent
from atoll.server.lorax_bodies import GenerateBody
from atoll.server.prompts import prompt_text

if TYPE_CHECKING:
    from atoll.engine.request import PromptToken
    from atoll.model.load import BaseModel

_FINISH_REASONS = {"length": "length", "eos": "eos_token", "stop_string": "stop_sequence"}
# What stands in a header as it is: visible ASCII. Anything else in a name is written as in an address, `%` too.
_PLAIN = "!#$&'()*+,/:;=?@[]~"


@dataclass(frozen=True)
class Answer:
    """One whole completion."""

    tokens: Sequence[TokenEvent]
    finish: FinishEvent

    @property
    def mean_logprob(self) -> float:
        """By which the best of several answers is chosen."""
        return sum(token.logprob for token in self.tokens) / max(1, len(self.tokens))


class AnswerWriter:
    """Writes the answers of one base model."""

    def __init__(self, base: BaseModel, special_ids: frozenset[int]) -> None:
        self._base = base
        self._special_ids = special_ids

    def whole(self, body: GenerateBody, request: Request, answers: Sequence[Answer]) -> dict[str, Any]:
        """The body of an answer; `answers` are all that were drawn, the best one first."""
        lead = self.lead(body, request)
        best, *others = answers
        content: dict[str, Any] = {"generated_text": lead + best.finish.text, "details": None}
        if body.parameters.wants_details:
            content["details"] = {
                **self.stream_details(best.finish),
                "prefill": self._prefill(best.finish.prompt_tokens),
                "tokens": [self.token(token) for token in best.tokens],
                "best_of_sequences": [self._other(lead, answer) for answer in others] or None,
            }
        return content

    def lead(self, body: GenerateBody, request: Request) -> str:
        """What stands before the answer's text."""
        if not body.parameters.return_full_text:
            return ""
        return prompt_text(self._base.tokenizer, body.inputs, request.adapter)

    def token(self, token: TokenEvent) -> dict[str, Any]:
        # Text that was held back may come with an end token: as a special token, clients would drop it.
        content: dict[str, Any] = {
            "id": token.token_id,
            "text": token.text,
            "logprob": token.logprob,
            "special": token.token_id in self._special_ids and not token.text,
            "skipped": False,
        }
        if token.top:
            content["alternative_tokens"] = [
                {"id": token_id, "text": self._decode(token_id), "logprob": logprob} for token_id, logprob in token.top
            ]
        return content

    @staticmethod
    def stream_details(finish: FinishEvent) -> dict[str, Any]:
        return {
            "finish_reason": _FINISH_REASONS[finish.stop_reason or "length"],
            "prompt_tokens": finish.num_prompt_tokens,
            "generated_tokens": len(finish.token_ids),
            "skipped_tokens": 0,
            "seed": finish.seed,
        }

    def headers(self, body: GenerateBody, request: Request) -> dict[str, str]:
        """Those that are known before the answer."""
        inputs = body.inputs
        num_chars = len(inputs) if isinstance(inputs, str) else sum(len(text) for text in inputs.values())
        headers = {
            "x-compute-type": self._base.device.type,
            "x-compute-characters": str(num_chars),
            "x-model-id": _header_text(self._base.name),
        }
        if request.adapter is not None:
            wanted = body.parameters
            ids = wanted.merge.ids if wanted.merge is not None else (wanted.adapter_id,)
            headers["x-adapter-id"] = _header_text(",".join(ids))
            headers["x-adapter-source"] = wanted.adapter_source or "store"
        return headers

    def _other(self, lead: str, answer: Answer) -> dict[str, Any]:
        finish = answer.finish
        return {
            "generated_text": lead + finish.text,
            "finish_reason": _FINISH_REASONS[finish.stop_reason or "length"],
            "generated_tokens": len(finish.token_ids),
            "seed": finish.seed,
            "prefill": self._prefill(finish.prompt_tokens),
            "tokens": [self.token(token) for token in answer.tokens],
        }

    def _prefill(self, tokens: Sequence[PromptToken]) -> list[dict[str, Any]]:
        return [{"id": t.token_id, "text": self._decode(t.token_id), "logprob": t.logprob} for t in tokens]

    def _decode(self, token_id: int) -> str:
        return str(self._base.tokenizer.decode([token_id]))


def result_headers(finish: FinishEvent, *, validation_s: float, total_s: float) -> dict[str, str]:
    """Token counts, and times in whole milliseconds.

    validation_s: until the request was submitted. total_s: until its answer was there.
    """
    num_new, timings = len(finish.token_ids), finish.timings
    inference_s = timings.total_s - timings.queue_s
    counts = {
        "x-prompt-tokens": finish.num_prompt_tokens,
        "x-generated-tokens": num_new,
        "x-skipped-tokens": 0,
        "x-total-tokens": finish.num_prompt_tokens + num_new,
    }
    times_s = {
        "x-compute-time": total_s,
        "x-total-time": total_s,
        "x-validation-time": validation_s,
        "x-queue-time": timings.queue_s,
        "x-inference-time": inference_s,
        "x-time-per-token": inference_s / max(1, num_new),
        "x-time-to-first-token": validation_s + timings.first_token_s,
        "x-time-per-output-token": (timings.total_s - timings.first_token_s) / max(1, num_new - 1),
    }
    return {name: str(count) for name, count in counts.items()} | {
        name: str(int(time_s * 1000)) for name, time_s in times_s.items()
    }


def _header_text(text: str) -> str:
    return quote(text, safe=_PLAIN, errors="replace")
