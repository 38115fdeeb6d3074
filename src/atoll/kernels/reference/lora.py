"""The grouped LoRA product, one module after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from atoll.kernels.lora import LoraTable, Segments, add_lora


@torch.no_grad()
def add_lora_group(x: Tensor, y: Tensor, segments: Segments, table: LoraTable) -> None:
    """Add every module's product to its columns of `y`, in place."""
    for out, weights in zip(torch.split(y, list(table.out_sizes), dim=1), table.weights, strict=True):
        add_lora(x, out, segments, weights)
