"""One request's completion as it grows: its text, where it ends, and the events that tell of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from atoll.engine.penalties import Penalties
from atoll.engine.request import FinishEvent, FinishReason, PromptToken, Request, StopReason, Timings, TokenEvent
from atoll.engine.sampler import Draw, Sample
from atoll.text.tokenizer import IncrementalDetokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEED_BITS = 53  # every reader of JSON keeps such a number exact


class StopCutter:
    """Passes text on until a stop string appears; holds back an ending that may be the beginning of one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.is_stopped = False
        self._stop = stop
        self._held = ""

    def push(self, text: str) -> str:
        """Take more text; returns what is certain to stand before any stop string."""
        if self.is_stopped or not self._stop:
            return "" if self.is_stopped else text
        self._held += text
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        self.is_stopped = bool(found)
        certain = min(found) if found else len(self._held) - self._num_doubtful()
        given = self._held[:certain]
        self._held = self._held[certain:]
        return given

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        given = "" if self.is_stopped else self._held
        self._held = ""
        return given

    def _num_doubtful(self) -> int:
        """Length of the longest ending that is the beginning of a stop string."""
        longest = min(max(map(len, self._stop)) - 1, len(self._held))
        for length in range(longest, 0, -1):
            if self._held.endswith(tuple(stop[:length] for stop in self._stop if len(stop) > length)):
                return length
        return 0


class Output:
    """Owned by the engine's step thread; created when the request reaches it."""

    def __init__(
        self, request: Request, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int], submitted_at_s: float
    ) -> None:
        self.finish_reason: FinishReason | None = None
        self._request = request
        self._end_ids = frozenset() if request.sampling.ignore_eos else end_ids
        self._detokenizer = IncrementalDetokenizer(tokenizer, request.prompt_ids)
        self._cutter = StopCutter(request.sampling.stop)
        seed = request.sampling.seed
        self._seed = secrets.randbits(SEED_BITS) if seed is None else seed
        self._penalties = Penalties(request.sampling, request.prompt_ids) if request.sampling.has_penalties else None
        self._constraint = request.constraint
        self._hidden_sum: Tensor | None = None
        wants_prompt = request.prompt_logprobs is not None
        self._prompt_tokens = [PromptToken(request.prompt_ids[0], None)] if wants_prompt else []
        self._stop_reason: StopReason | None = None
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._submitted_at_s = submitted_at_s
        self._started_at_s: float | None = None
        self._first_token_at_s: float | None = None

    def start(self) -> None:
        """Note that the request is in a step; only the first time counts."""
        if self._started_at_s is None:
            self._started_at_s = time.perf_counter()

    @property
    def next_draw(self) -> Draw:
        return Draw(self._request.sampling, self._seed, len(self._token_ids), self._penalties, self._constraint)

    def take_hidden(self, start: int, hidden_sum: Tensor) -> None:
        """Take the sum of the hidden states of some tokens of the prompt; `start` 0 begins anew."""
        self._hidden_sum = hidden_sum if start == 0 or self._hidden_sum is None else self._hidden_sum + hidden_sum

    def take_prompt_tokens(self, start: int, tokens: Sequence[PromptToken]) -> None:
        """Take the log-probabilities of the tokens from `start` + 1 on, in place of those that were there."""
        self._prompt_tokens[start + 1 :] = tokens

    def finish_embedding(self) -> None:
        """Note that the whole prompt is computed and that nothing is to be generated."""
        self.finish_reason = "stop"

    def push(self, sample: Sample) -> TokenEvent:
        """Take the next token; sets `finish_reason` if it is the last one. Raises RequestInvalid."""
        if self._first_token_at_s is None:
            self._first_token_at_s = time.perf_counter()
        self._token_ids.append(sample.token_id)
        if self._penalties is not None:
            self._penalties.push(sample.token_id)
        is_complete = False
        if self._constraint is not None:
            self._constraint.push(sample.token_id)
            is_complete = self._constraint.is_complete
        is_end = sample.token_id in self._end_ids
        is_full = len(self._token_ids) == self._request.sampling.max_new_tokens
        text = "" if is_end else self._cutter.push(self._detokenizer.push(sample.token_id))
        if (is_end or is_full or is_complete) and not self._cutter.is_stopped:
            text += self._cutter.push(self._detokenizer.flush()) + self._cutter.flush()
        if self._cutter.is_stopped:
            self.finish_reason, self._stop_reason = "stop", "stop_string"
        elif is_end or is_complete:
            self.finish_reason, self._stop_reason = "stop", "eos"
        elif is_full:
            self.finish_reason = "length"
        self._texts.append(text)
        return TokenEvent(
            request_id=self._request.request_id,
            token_id=sample.token_id,
            text=text,
            logprob=sample.logprob,
            top=sample.top,
        )

    def finish(self, num_cached_tokens: int = 0) -> FinishEvent:
        """The last event; an abort where no token has ended the request."""
        now_s = time.perf_counter()
        return FinishEvent(
            request_id=self._request.request_id,
            finish_reason=self.finish_reason or "abort",
            stop_reason=self._stop_reason,
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            num_prompt_tokens=len(self._request.prompt_ids),
            num_cached_tokens=num_cached_tokens,
            prompt_tokens=tuple(self._prompt_tokens),
            embedding=self._embedding(),
            seed=self._seed if self._request.sampling.temperature > 0 else None,
            timings=Timings(
                queue_s=(self._started_at_s or now_s) - self._submitted_at_s,
                first_token_s=(self._first_token_at_s or now_s) - self._submitted_at_s,
                total_s=now_s - self._submitted_at_s,
            ),
        )

    def _embedding(self) -> tuple[float, ...]:
        if self._hidden_sum is None:
            return ()
        return tuple((self._hidden_sum / len(self._request.prompt_ids)).tolist())
