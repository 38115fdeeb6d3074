"""The CPU's attention over a paged cache against attention in float64, and against itself in other batches."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atoll.kernels.attention import PagedLayout, paged_attention
from atoll.kernels.cpu.attention import PART, make_plan
from atoll.kernels.reference import attention as reference
from support.paged import SHAPES, PagedCache, draw_cache

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 2e-3, torch.float64: 1e-10}


@dataclass
class Step(PagedCache):
    """Requests with one new token each."""

    q: Tensor
    lengths: list[int]

    def layout(self, requests: list[int]) -> PagedLayout:
        lengths = torch.tensor([self.lengths[i] for i in requests])
        starts = torch.arange(len(requests) + 1)
        table, device = self.table_of(requests), torch.device("cpu")
        return PagedLayout(starts, lengths, table, block_size=self.block_size, device=device)

    def attend(
        self, requests: list[int] | None = None, *, window: int | None = None, softcap: float | None = None
    ) -> Tensor:
        """[requests, num_heads, value_dim] of these requests in one step, all of them if None."""
        requests = list(range(len(self.lengths))) if requests is None else requests
        q = self.q[requests]
        new = self.keys[: len(q)], self.values[: len(q)]
        layout = self.layout(requests)
        return paged_attention(q, *new, self.keys, self.values, layout, scale=0.3, window=window, softcap=softcap)

    def exact(self, request: int, window: int | None, softcap: float | None) -> Tensor:
        """[num_heads, value_dim] in float64."""
        length = self.lengths[request]
        first = 0 if window is None else max(0, length - window)
        where = self.places(request, length)
        k, v = (cache[where[first:]].double() for cache in (self.keys, self.values))
        repeats = self.q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores = torch.einsum("hd,thd->ht", self.q[request].double(), k) * 0.3
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        return torch.einsum("ht,thd->hd", scores.softmax(1), v)


def draw(
    lengths: list[int],
    *,
    heads: tuple[int, int] = (6, 2),
    dims: tuple[int, int] = (16, 16),
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Step:
    generator = torch.Generator().manual_seed(seed)
    cache = draw_cache(lengths, heads[1], dims, block_size, dtype, generator)
    q = torch.randn(len(lengths), heads[0], dims[0], generator=generator).to(dtype)
    return Step(**vars(cache), q=q, lengths=lengths)


@pytest.fixture
def kernel_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the reference fail, so that what is tested is the kernel."""
    monkeypatch.delattr(reference, "attend_group")


EDGES = st.sampled_from([1, 2, 3, 15, 16, 17, PART - 1, PART, PART + 1, 2 * PART, 300, 700])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(EDGES, min_size=1, max_size=5),
    block_size=st.sampled_from([1, 4, 5, 16, 32, 256]),
    window=st.sampled_from([None, 1, 5, 100, PART, 400]),
    **SHAPES,
)
def test_equals_attention_in_float64(
    lengths: list[int],
    heads: tuple[int, int],
    dims: tuple[int, int],
    block_size: int,
    window: int | None,
    softcap: float | None,
    dtype: torch.dtype,
    seed: int,
) -> None:
    step = draw(lengths, heads=heads, dims=dims, block_size=block_size, dtype=dtype, seed=seed)
    out = step.attend(window=window, softcap=softcap)
    assert out.dtype == dtype
    expected = torch.stack([step.exact(i, window, softcap) for i in range(len(lengths))])
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.usefixtures("kernel_only")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
def test_batch_mates_and_threads_change_no_bit(dtype: torch.dtype, threads: int) -> None:
    lengths = [1, 700, 16, 129, 300, 128, 5, 90]
    step = draw(lengths, dims=(64, 64), heads=(9, 3), dtype=dtype)
    alone = torch.cat([step.attend([i]) for i in range(len(lengths))])
    torch.set_num_threads(threads)
    try:
        assert torch.equal(step.attend(), alone)
        shuffled = random.Random(1).sample(range(len(lengths)), len(lengths))
        assert torch.equal(step.attend(shuffled), alone[shuffled])
    finally:
        torch.set_num_threads(1)


@pytest.mark.usefixtures("kernel_only")
@pytest.mark.parametrize("part", ["q", "keys", "values"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_gone_wrong_show_in_their_own_request_alone(part: str, value: float) -> None:
    step = draw([40, 200, 300])
    healthy = step.attend()
    row = 1 if part == "q" else step.tables[1][0] * step.block_size
    getattr(step, part)[row] = value
    out = step.attend()
    assert torch.equal(out[[0, 2]], healthy[[0, 2]])
    assert not out[1].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_take_the_reference(dtype: torch.dtype) -> None:
    step = draw([30, 1, 200], dtype=dtype)
    expected = torch.stack([step.exact(i, 50, None) for i in range(3)])
    torch.testing.assert_close(step.attend(window=50).double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_tensors_of_any_layout() -> None:
    step = draw([30, 1, 200], heads=(6, 2))
    expected = step.attend()
    wide = torch.zeros(3, 20, 16)
    wide[:, 4:10] = step.q
    layout = step.layout([0, 1, 2])
    new = step.keys[:3], step.values[:3]
    rows_apart, heads_last = wide[:, 4:10], step.q.transpose(0, 1).contiguous().transpose(0, 1)
    for q in (rows_apart, heads_last):
        assert not q.is_contiguous()
        assert torch.equal(paged_attention(q, *new, step.keys, step.values, layout, scale=0.3), expected)
    keys = torch.cat((step.keys, step.keys), dim=2)[..., :16]
    out = paged_attention(step.q, *new, keys, step.values, layout, scale=0.3)
    torch.testing.assert_close(out, expected)


@given(lengths=st.lists(st.integers(1, 5 * PART), min_size=1, max_size=9))
def test_a_plan_covers_every_position_once(lengths: list[int]) -> None:
    rows = [(i, 2 * i, length) for i, length in enumerate(lengths)]
    plan = make_plan(rows, np.zeros((len(lengths), 1), np.int32), 16)
    seen: dict[int, list[int]] = {row: [] for _, row, _ in rows}
    places: dict[int, list[int]] = {row: [] for _, row, _ in rows}
    for request, row, start, stop, length, place in plan.pieces.tolist():
        assert row == 2 * request
        assert length == lengths[request]
        assert stop - start <= PART
        seen[row] += range(start, stop)
        places[row].append(place)
    assert all(sorted(seen[row]) == list(range(length)) for _, row, length in rows)
    merged = {row: list(range(first, stop)) for row, first, stop in plan.merges.tolist()}
    assert {row: sorted(found) for row, found in places.items()} == {row: merged.get(row, [-1]) for row in places}
    assert sorted(place for found in merged.values() for place in found) == list(range(plan.num_unfinished))
