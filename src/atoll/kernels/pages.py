"""Large tensors that take memory only where somebody has written."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor


def zeros_on_demand(size: Sequence[int], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros; on a CPU a page of them takes memory from its first write on."""
    if torch.device(device).type != "cpu":
        return torch.zeros(*size, dtype=dtype, device=device)
    # Nobody shares them, and the first write to a page takes half as long again where a mapping is shared.
    pages = mmap.mmap(-1, math.prod(size) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(*size)
