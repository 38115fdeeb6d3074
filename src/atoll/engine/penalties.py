"""What a request's penalties and biases do to its logits."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from atoll.engine.request import SamplingParams

_LARGEST = float(np.finfo(np.float32).max)


class Penalties:
    """The tokens of one request that its penalties or its bias change; follows the completion token by token.

    First repetition_penalty, as the CTRL paper (arXiv 1909.05858) and transformers define it, over prompt and
    completion; then frequency_penalty, presence_penalty and logit_bias, as OpenAI defines them: the first two over the
    completion alone.
    """

    def __init__(self, sampling: SamplingParams, prompt_ids: Iterable[int]) -> None:
        self._sampling = sampling
        self._places: dict[int, int] = {}
        self._generated: set[int] = set()
        self._ids = np.zeros(16, np.int64)
        self._factors = np.ones(16)
        self._offsets = np.zeros(16)
        for token_id, bias in sampling.logit_bias:
            place = self._place(token_id)
            self._offsets[place] = bias
        if sampling.repetition_penalty != 1:
            for token_id in prompt_ids:
                place = self._place(token_id)
                self._factors[place] = sampling.repetition_penalty

    def push(self, token_id: int) -> None:
        """Take one generated token."""
        place = self._place(token_id)
        self._factors[place] = self._sampling.repetition_penalty
        self._offsets[place] -= self._sampling.frequency_penalty
        if token_id not in self._generated:
            self._generated.add(token_id)
            self._offsets[place] -= self._sampling.presence_penalty

    def apply(self, logits: npt.NDArray[np.float32]) -> None:
        """Change one row in place; logits: [vocab]."""
        used = slice(len(self._places))
        ids, factors = self._ids[used], self._factors[used]
        old = logits[ids].astype(np.float64)
        with np.errstate(over="ignore"):
            new = np.where(old > 0, old / factors, old * factors) + self._offsets[used]
        # A penalty close to 0 must not make infinities, with which nothing could be drawn.
        logits[ids] = new.clip(-_LARGEST, _LARGEST)

    def _place(self, token_id: int) -> int:
        if token_id not in self._places:
            place = self._places[token_id] = len(self._places)
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._factors = np.concatenate([self._factors, np.ones_like(self._factors)])
                self._offsets = np.concatenate([self._offsets, np.zeros_like(self._offsets)])
            self._ids[place] = token_id
        return self._places[token_id]
