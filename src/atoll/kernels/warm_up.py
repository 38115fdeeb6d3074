"""Compiling before the first request instead of during it."""

from __future__ import annotations

import torch

from atoll.kernels.attention import PagedLayout, paged_attention
from atoll.kernels.fused import add_rms_norm, rms_norm, rope_store, silu_mul


def warm_up(dtype: torch.dtype, device: torch.device) -> None:
    """Compile the kernels of attention, norm, activation and rotation for a dtype, or load them from numba's cache."""
    x = torch.ones(1, 6, dtype=dtype, device=device)
    start = torch.zeros(1, dtype=torch.long, device=device)
    cache = torch.ones(1, 1, 2, dtype=dtype, device=device)
    rms_norm(x, x[0], 1e-5)
    add_rms_norm(x, x, x[0], 1e-5)
    silu_mul(x)
    rope_store(x, x[:, :2].contiguous(), x[:, :2].contiguous(), start, cache, cache, 1)
    # A request with one new token and one with two.
    starts, lengths, table = torch.tensor([0, 1, 3]), torch.tensor([1, 2]), torch.tensor([[0, 0], [1, 2]])
    layout = PagedLayout(starts, lengths, table, block_size=1, device=device)
    cache = cache.repeat(3, 1, 1)
    paged_attention(cache, cache, cache, cache, cache, layout, scale=1.0)
