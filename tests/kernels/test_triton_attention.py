"""Triton's paged attention against attention written out: on the GPU where there is one, else in the interpreter."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from atoll.kernels.triton.attention import paged_decode
from support.interpreter import DEVICE

SCALE = 0.3


def naive(q: Tensor, k: Tensor, v: Tensor, window: int | None, softcap: float | None) -> Tensor:
    """One request, in float64. q: [num_heads, key_dim]; k, v: [tokens, num_kv_heads, dim]."""
    first = 0 if window is None else max(0, k.shape[0] - window)
    repeats = q.shape[0] // k.shape[1]
    k, v = (x[first:].double().repeat_interleave(repeats, dim=1) for x in (k, v))
    scores = torch.einsum("hd,thd->ht", q.double(), k) * SCALE
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return torch.einsum("ht,thd->hd", scores.softmax(-1), v)


def check(
    lengths: list[int],
    *,
    heads: tuple[int, int] = (6, 2),
    dims: tuple[int, int] = (16, 16),
    block_size: int = 4,
    window: int | None = None,
    softcap: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Random requests over shuffled blocks of a cache that is NaN elsewhere."""
    generator = torch.Generator().manual_seed(sum(lengths))
    num_blocks = sum(-(-length // block_size) for length in lengths) + 3
    free = random.Random(0).sample(range(num_blocks), num_blocks)
    table = torch.full((len(lengths), -(-max(lengths) // block_size)), -1, dtype=torch.int32)
    keys = torch.full((num_blocks * block_size, heads[1], dims[0]), torch.nan, dtype=dtype)
    values = torch.full((num_blocks * block_size, heads[1], dims[1]), torch.nan, dtype=dtype)
    q = torch.randn(len(lengths), heads[0], dims[0], generator=generator).to(dtype)
    expected = []
    for request, length in enumerate(lengths):
        k = torch.randn(length, heads[1], dims[0], generator=generator).to(dtype)
        v = torch.randn(length, heads[1], dims[1], generator=generator).to(dtype)
        for block in range(-(-length // block_size)):
            table[request, block] = place = free.pop()
            rows = slice(block * block_size, min((block + 1) * block_size, length))
            start = place * block_size
            keys[start : start + rows.stop - rows.start] = k[rows]
            values[start : start + rows.stop - rows.start] = v[rows]
        expected.append(naive(q[request], k, v, window, softcap))
    out = paged_decode(
        *(tensor.to(DEVICE) for tensor in (q, keys, values, table, torch.tensor(lengths, dtype=torch.int32))),
        block_size=block_size, max_length=max(lengths), scale=SCALE, window=window, softcap=softcap,
    )  # fmt: skip
    tolerance = 1e-5 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(out.cpu().double(), torch.stack(expected), atol=tolerance, rtol=tolerance)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("window", "softcap"), [(None, None), (1, None), (5, None), (None, 2.0), (5, 2.0), (1000, None)]
)
def test_equals_the_naive_reference(window: int | None, softcap: float | None, dtype: torch.dtype) -> None:
    check([1, 2, 4, 5, 31, 33], window=window, softcap=softcap, dtype=dtype)


@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (8, 1), (15, 5)])
@pytest.mark.parametrize("block_size", [1, 3, 16])
def test_heads_and_blocks(heads: tuple[int, int], block_size: int) -> None:
    check([9, 40], heads=heads, block_size=block_size)


@pytest.mark.parametrize("dims", [(24, 16), (8, 40)])
def test_dimensions_that_are_no_powers_of_two(dims: tuple[int, int]) -> None:
    check([9, 40], dims=dims)


@pytest.mark.parametrize("window", [None, 10, 300])
def test_parts_are_put_together(window: int | None) -> None:
    """Longer than one part; with a small window the first parts see nothing at all."""
    check([3, 256, 257, 600], heads=(2, 1), block_size=16, window=window)


def test_a_request_does_not_depend_on_its_batch_mates() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(rows, 2, 16, generator=generator).to(DEVICE) for rows in (2, 700, 700))
    table = torch.arange(700, dtype=torch.int32).expand(2, -1).to(DEVICE)
    options = {"block_size": 1, "scale": SCALE}
    lengths = torch.tensor([37, 700], dtype=torch.int32, device=DEVICE)
    together = paged_decode(q, k, v, table, lengths, max_length=700, **options)
    for request, length in enumerate([37, 700]):
        row = slice(request, request + 1)
        alone = paged_decode(q[row], k, v, table[row, :length], lengths[row], max_length=length, **options)
        assert torch.equal(alone[0], together[request])
