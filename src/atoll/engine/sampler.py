"""From logits to tokens, for all rows at once.

The log-probabilities reported are those of the model itself: before penalties, biases and temperature, as vLLM and
OpenAI report them, so that they can be held against the trainer's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from atoll.engine.penalties import Penalties
from atoll.engine.request import PromptToken, SamplingParams, TopLogprobs
from atoll.kernels import sampling as kernel
from atoll.text.constraint import TokenConstraint


class Draw(NamedTuple):
    """How to choose one row's token. position: the token's place in its completion; penalties, constraint: if any."""

    sampling: SamplingParams
    seed: int
    position: int
    penalties: Penalties | None = None
    constraint: TokenConstraint | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the model's own best token is the choice."""
        return self.sampling.temperature == 0 and self.penalties is None and self.constraint is None

    @property
    def choice(self) -> kernel.Choice:
        sampling = self.sampling
        number = uniform(self.seed, self.position) if sampling.temperature > 0 else 0.0
        return kernel.Choice(sampling.temperature, sampling.top_k, sampling.top_p, sampling.typical_p, number)


class Sample(NamedTuple):
    """A chosen token, its log-probability and the best alternatives, both under the model itself."""

    token_id: int
    logprob: float
    top: TopLogprobs


def sample(logits: Tensor, draws: Sequence[Draw]) -> list[Sample | None]:
    """Choose one token for every row; None for a row whose logits are not numbers.

    logits: [n, vocab], any float dtype and device. A row's token depends on its own logits, penalties, seed and
    position alone: never on its neighbours, nor on how often it was preempted.
    """
    if not draws:
        return []
    token_ids, log_totals = kernel.summarise(logits)
    if chosen := [row for row, draw in enumerate(draws) if not draw.is_plain]:
        token_ids[chosen] = _choose(logits[chosen], [draws[row] for row in chosen]).to(token_ids.device)
    totals = log_totals.tolist()
    values = logits.gather(1, token_ids.clamp(min=0)[:, None])[:, 0].tolist()
    tops = _top_logprobs(logits, totals, draws)
    return [
        Sample(token_id, value - total, top) if math.isfinite(value - total) else None
        for token_id, value, total, top in zip(token_ids.tolist(), values, totals, tops, strict=True)
    ]


def score(logits: Tensor, token_ids: Sequence[int], num_top: int) -> list[PromptToken]:
    """Log-probabilities of given tokens, with the best alternatives. logits: [n, vocab], a row for each token."""
    if not token_ids:
        return []
    totals = kernel.summarise(logits)[1].tolist()
    values = logits.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0].tolist()
    tops: list[TopLogprobs] = [()] * len(token_ids)
    if num_top:
        best = logits.topk(min(num_top, logits.shape[1]), dim=-1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), totals, strict=True)
        tops = [tuple((i, v - total) for i, v in zip(ids, row, strict=True)) for ids, row, total in pairs]
    return [
        PromptToken(token_id, value - total, top)
        for token_id, value, total, top in zip(token_ids, values, totals, tops, strict=True)
    ]


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) of one position: a pure function, so that no other draw can shift it."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def _choose(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """[n] token ids on the CPU, where a seed means the same whatever device the model is on; changes `logits`."""
    rows = logits.float().cpu().numpy()
    for row, draw in zip(rows, draws, strict=True):
        if draw.penalties is not None:
            draw.penalties.apply(row)
        if draw.constraint is not None:
            row[~draw.constraint.allowed(len(row))] = -np.inf
    return torch.from_numpy(kernel.draw(rows, [draw.choice for draw in draws]))


def _top_logprobs(logits: Tensor, log_totals: Sequence[float], draws: Sequence[Draw]) -> list[TopLogprobs]:
    tops: list[TopLogprobs] = [()] * len(draws)
    if wanted := [row for row, draw in enumerate(draws) if draw.sampling.logprobs]:
        most = max(draws[row].sampling.logprobs for row in wanted)
        best = logits[wanted].topk(min(most, logits.shape[1]), dim=-1)
        for row, token_ids, values in zip(wanted, best.indices.tolist(), best.values.tolist(), strict=True):
            pairs = list(zip(token_ids, values, strict=True))[: draws[row].sampling.logprobs]
            tops[row] = tuple((token_id, value - log_totals[row]) for token_id, value in pairs)
    return tops
