"""From logits to token ids: the best token, what turns logits into log-probabilities, and seeded draws.

A token's weight is exp((logit - best) / temperature) in fixed point. Sums of integers are exact, so that a draw
depends on the row and its number alone: not on threads, on the order of a sum or on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.int32]
"""Integers that stand in the order of some floats."""


class Choice(NamedTuple):
    """How one row's token is drawn, in this order: temperature, top_k, top_p, typical_p; tokens that tie all stay.

    temperature 0 takes the best token. top_k 0, top_p 1 and typical_p 1 are off. uniform: the random number in [0, 1).
    """

    temperature: float
    top_k: int
    top_p: float
    typical_p: float
    uniform: float


def summarise(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The first of the best tokens, and the logarithm of the sum of exp(logit), of each row.

    logits: [n, vocab]. Returns [n] int64 and [n] float64; the latter is NaN or infinite where a row holds NaN or +inf,
    or nothing but -inf.
    """
    if logits.device.type != "cpu":
        return logits.argmax(-1), logits.float().logsumexp(-1).double()
    from atoll.kernels.cpu import sampling as cpu
    from atoll.kernels.cpu.threads import num_threads

    num_threads()
    best, log_totals = np.empty(len(logits), np.int64), np.empty(len(logits), np.float64)
    cpu.summarise(logits.float().contiguous().numpy(), best, log_totals)
    return torch.from_numpy(best), torch.from_numpy(log_totals)


def draw(logits: Floats, choices: Sequence[Choice]) -> Ints:
    """One token id for each row, 0 where `summarise` finds no number; logits: [n, vocab], C-contiguous."""
    from atoll.kernels.cpu import sampling as cpu
    from atoll.kernels.cpu.threads import num_threads

    num_threads()
    token_ids = np.empty(len(logits), np.int64)
    temperatures, top_ks, top_ps, typical_ps, uniforms = zip(*choices, strict=True)
    limits = np.finfo(np.float32)
    # A temperature beyond float32's range is as good as one at its end; 0 stays 0.
    clipped = [t and min(max(t, float(limits.tiny)), float(limits.max)) for t in temperatures]
    cpu.draw(
        logits,
        np.array(clipped, np.float32),
        np.array([min(k, logits.shape[1]) for k in top_ks], np.int64),
        np.array(top_ps, np.float64),
        np.array(typical_ps, np.float64),
        np.array(uniforms, np.float64),
        token_ids,
    )
    return token_ids
