"""What the quantised products mean, written without regard to time."""

from __future__ import annotations

import torch
from torch import Tensor


def int8_linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Rows rounded to float16 and quantised by their own largest value, times integers, in exact integers.

    x: [tokens, in_features]. codes: [out_features, in_features] int8. scales: [out_features]. Returns float64.
    """
    x = x.float().half().float()
    largest = x.abs().amax(dim=1, keepdim=True)
    row_codes = torch.where(largest > 0, x * (127 / largest), 0).round().long()
    y = (row_codes @ codes.long().t()).double() * scales.double() * (largest.double() / 127)
    return y if bias is None else y + bias.double()


def four_bit_weight(codes: Tensor, scales: Tensor, table: Tensor) -> Tensor:
    """The weights [out_features, in_features] of codes [out_features, in_features / 2], the first in the upper half.

    scales: [out_features, blocks]. table: [16].
    """
    values = table[torch.stack([codes >> 4, codes & 15], dim=-1).flatten(1).long()]
    return values * scales.repeat_interleave(values.shape[1] // scales.shape[1], dim=1)
