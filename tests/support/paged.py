"""Requests in a paged KV cache, and the shapes of attention that its kernels are tried with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

SHAPES: dict[str, Any] = {
    "heads": st.sampled_from([(1, 1), (4, 4), (9, 3), (8, 1), (6, 2)]),
    "dims": st.sampled_from([(64, 64), (80, 80), (128, 128), (24, 8), (7, 5)]),
    "softcap": st.sampled_from([None, None, 2.0, 50]),
    "dtype": st.sampled_from([torch.float32, torch.bfloat16]),
    "seed": st.integers(0, 99),
}
"""heads: of queries and of the cache. dims: of keys and of values."""


@dataclass
class PagedCache:
    """One layer of a cache. tables: each request's blocks, in order; what no request holds is NaN or infinite."""

    keys: Tensor
    values: Tensor
    tables: list[list[int]]
    block_size: int

    def places(self, request: int, length: int) -> list[int]:
        """Where the first tokens of a request lie."""
        size = self.block_size
        return [self.tables[request][t // size] * size + t % size for t in range(length)]

    def table_of(self, requests: Sequence[int]) -> Tensor:
        """[requests, most blocks], -1 where a request has fewer."""
        width = max(len(self.tables[i]) for i in requests)
        return torch.tensor([self.tables[i] + [-1] * (width - len(self.tables[i])) for i in requests])


def draw_cache(
    lengths: Sequence[int],
    num_heads: int,
    dims: tuple[int, int],
    block_size: int,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> PagedCache:
    """Random keys and values of requests of these lengths, in blocks that lie anywhere."""
    counts = [-(-length // block_size) for length in lengths]
    free = random.Random(generator.initial_seed()).sample(range(sum(counts) + 3), sum(counts) + 3)
    tables = [[free.pop() for _ in range(count)] for count in counts]
    caches = []
    for dim in dims:
        cache = torch.full((sum(counts) + 3, block_size, num_heads, dim), float("nan")).to(dtype)
        cache[::2] = float("inf")
        for table, length in zip(tables, lengths, strict=True):
            own = cache[table].flatten(0, 1)
            own[:length] = torch.randn(length, num_heads, dim, generator=generator).to(dtype)
            cache[table] = own.view(len(table), block_size, num_heads, dim)
        caches.append(cache.flatten(0, 1))
    keys, values = caches
    return PagedCache(keys, values, tables, block_size)
