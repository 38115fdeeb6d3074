"""From logits to tokens: greedy for all rows at once, sampled for each row on its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atoll.engine.request import SamplingParams, TopLogprobs


class Draw(NamedTuple):
    """How to choose one row's token. position: the token's place in its completion."""

    sampling: SamplingParams
    seed: int
    position: int


class Sample(NamedTuple):
    """A chosen token, its log-probability under the model itself (before temperature), and the best alternatives."""

    token_id: int
    logprob: float
    top: TopLogprobs


def sample(logits: Tensor, draws: Sequence[Draw]) -> list[Sample | None]:
    """Choose one token for every row; None for a row whose logits are not numbers.

    logits: [n, vocab], any float dtype and device. A row's token depends on its own logits, seed and position alone:
    never on its neighbours, nor on how often it was preempted.
    """
    if not draws:
        return []
    logprobs = logits.float().log_softmax(-1)
    token_ids = logprobs.argmax(-1)
    if sampled := [row for row, draw in enumerate(draws) if draw.sampling.temperature > 0]:
        # float32 on the CPU, so that a seed means the same on every device.
        rows = logprobs[sampled].cpu().numpy()
        drawn = [choose(row, draws[index]) for row, index in zip(rows, sampled, strict=True)]
        token_ids[sampled] = torch.tensor(drawn, device=token_ids.device)
    chosen = logprobs.gather(1, token_ids[:, None])[:, 0].tolist()
    tops = _top_logprobs(logprobs, draws)
    return [
        Sample(token_id, logprob, top) if math.isfinite(logprob) else None
        for token_id, logprob, top in zip(token_ids.tolist(), chosen, tops, strict=True)
    ]


def choose(logprobs: npt.NDArray[np.float32], draw: Draw) -> int:
    """Draw one token by the inverse of the cumulated distribution, in vocabulary order. logprobs: [vocab]."""
    if not np.isfinite(best := logprobs.max()):
        return 0
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp((logprobs - best) / np.float32(draw.sampling.temperature))
    _keep_top(weights, draw.sampling)
    kept = np.flatnonzero(weights)
    cumulated = np.cumsum(weights[kept], dtype=np.float64)
    place = np.searchsorted(cumulated, uniform(draw.seed, draw.position) * cumulated[-1], side="right")
    return int(kept[min(int(place), len(kept) - 1)])


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) of one position: a pure function, so that no other draw can shift it."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def _keep_top(weights: npt.NDArray[np.float32], sampling: SamplingParams) -> None:
    """Set to zero what top_k and then top_p exclude; tokens that tie for the last place all stay. weights: [vocab]."""
    if 0 < sampling.top_k < len(weights):
        last = np.partition(weights, -sampling.top_k)[-sampling.top_k]
        weights[weights < last] = 0
    if sampling.top_p < 1:
        descending = np.sort(weights)[::-1]
        cumulated = np.cumsum(descending, dtype=np.float64)
        count = int(np.searchsorted(cumulated, sampling.top_p * cumulated[-1], side="left"))
        weights[weights < descending[min(count, len(weights) - 1)]] = 0


def _top_logprobs(logprobs: Tensor, draws: Sequence[Draw]) -> list[TopLogprobs]:
    tops: list[TopLogprobs] = [()] * len(draws)
    if wanted := [row for row, draw in enumerate(draws) if draw.sampling.logprobs]:
        most = max(draws[row].sampling.logprobs for row in wanted)
        best = logprobs[wanted].topk(min(most, logprobs.shape[1]), dim=-1)
        for row, token_ids, values in zip(wanted, best.indices.tolist(), best.values.tolist(), strict=True):
            pairs = zip(token_ids, values, strict=True)
            tops[row] = tuple(pairs)[: draws[row].sampling.logprobs]
    return tops
