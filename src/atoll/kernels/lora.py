"""The LoRA product for a batch in which every row belongs to one adapter or to none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class LoraWeights(NamedTuple):
    """One adapter's matrices for one linear layer.

    a: [rank, in_features]. b: [out_features, rank]. The layer adds `scaling * x @ a.T @ b.T`.
    """

    a: Tensor
    b: Tensor
    scaling: float


class Dropout(NamedTuple):
    """Dropout on the input of one adapter's branch, a pure function of `seed` so that recomputation repeats it."""

    probability: float
    seed: int


def add_lora(
    x: Tensor,
    y: Tensor,
    segments: Sequence[tuple[int, int, int]],
    weights: Mapping[int, LoraWeights],
    dropout: Mapping[int, Dropout] | None = None,
) -> Tensor:
    """Add each adapter's product to its own rows of `y`; rows of slots without weights stay unchanged.

    x: [tokens, in_features]. y: [tokens, out_features], the base layer's output. segments: (slot, start, stop) that
    cover all rows in order. Returns [tokens, out_features]; `y` itself, changed in place, where no gradient is needed.
    Weights are used in the dtype of `x`. Source: Punica's segmented product, arXiv 2310.18547.
    """
    if not torch.is_grad_enabled():
        for slot, start, stop in segments:
            if (lora := weights.get(slot)) is not None:
                hidden = x[start:stop] @ lora.a.to(x.dtype).t()
                y[start:stop].addmm_(hidden.to(y.dtype), lora.b.to(y.dtype).t(), alpha=lora.scaling)
        return y
    # Split, not slices: the backward of a slice fills a zero tensor as large as the whole batch.
    lengths = [stop - start for _, start, stop in segments]
    parts = []
    for (slot, _, _), inputs, rows in zip(segments, torch.split(x, lengths), torch.split(y, lengths), strict=True):
        lora = weights.get(slot)
        if lora is None:
            parts.append(rows)
            continue
        if dropout is not None and (drop := dropout.get(slot)) is not None:
            inputs = _drop(inputs, drop)
        hidden = functional.linear(inputs, lora.a.to(x.dtype))
        parts.append(torch.addmm(rows, hidden.to(y.dtype), lora.b.to(y.dtype).t(), alpha=lora.scaling))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _drop(x: Tensor, dropout: Dropout) -> Tensor:
    generator = torch.Generator(x.device).manual_seed(dropout.seed)
    keep = torch.empty_like(x).bernoulli_(1 - dropout.probability, generator=generator)
    return x * keep / (1 - dropout.probability)
