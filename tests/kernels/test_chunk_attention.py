"""The CPU's attention of prompts, whole or cut, against attention in float64, and against itself in other steps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atoll.kernels.attention import PagedLayout, paged_attention
from atoll.kernels.cpu.chunk_attention import PART, QUERIES, make_chunk_plan
from atoll.kernels.reference import attention as reference
from support.paged import SHAPES, PagedCache, draw_cache

BLOCK_SIZE = 16
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2}
Cut = tuple[int, int, int]
"""A chunk: request, first position, stop."""


@dataclass
class Prompts(PagedCache):
    """Whole prompts. q: for each request [length, num_heads, key_dim]."""

    q: list[Tensor]

    def attend(self, cuts: Sequence[Cut], window: int | None = None, softcap: float | None = None) -> list[Tensor]:
        """What the tokens of each cut find, all in one step."""
        starts = torch.tensor([0, *(stop - start for _, start, stop in cuts)]).cumsum(0)
        lengths, table = torch.tensor([cut[2] for cut in cuts]), self.table_of([cut[0] for cut in cuts])
        layout = PagedLayout(starts, lengths, table, block_size=self.block_size, device=torch.device("cpu"))
        q = torch.cat([self.q[i][start:stop] for i, start, stop in cuts])
        new = self.keys[: len(q)], self.values[: len(q)]
        out = paged_attention(q, *new, self.keys, self.values, layout, scale=0.3, window=window, softcap=softcap)
        return [out[start:stop] for start, stop in itertools.pairwise(starts.tolist())]

    def exact(self, request: int, window: int | None, softcap: float | None) -> Tensor:
        """[length, num_heads, value_dim] in float64."""
        q = self.q[request].double()
        where = self.places(request, len(q))
        repeats = q.shape[1] // self.keys.shape[1]
        k, v = (cache[where].double().repeat_interleave(repeats, 1) for cache in (self.keys, self.values))
        scores = torch.einsum("qhd,khd->hqk", q, k) * 0.3
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        age = torch.arange(len(q))[:, None] - torch.arange(len(q))
        hidden = (age < 0) | (age >= (window or len(q)))
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), v)


def draw(
    lengths: Sequence[int],
    *,
    heads: tuple[int, int] = (6, 2),
    dims: tuple[int, int] = (16, 16),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Prompts:
    generator = torch.Generator().manual_seed(seed)
    cache = draw_cache(lengths, heads[1], dims, BLOCK_SIZE, dtype, generator)
    q = [torch.randn(length, heads[0], dims[0], generator=generator).to(dtype) for length in lengths]
    return Prompts(**vars(cache), q=q)


@pytest.fixture
def kernel_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the reference fail, so that what is tested is the kernel."""
    monkeypatch.delattr(reference, "attend_chunk")


LENGTHS = st.sampled_from([2, 3, 5, 16, 63, QUERIES, QUERIES + 1, PART - 1, PART, PART + 2, 2 * PART + 5, 400])


@pytest.mark.usefixtures("kernel_only")
@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(LENGTHS, min_size=1, max_size=4),
    window=st.sampled_from([None, 1, 3, 5, 100, PART, 300]),
    **SHAPES,
)
def test_equals_attention_in_float64(
    lengths: list[int],
    heads: tuple[int, int],
    dims: tuple[int, int],
    window: int | None,
    softcap: float | None,
    dtype: torch.dtype,
    seed: int,
) -> None:
    prompts = draw(lengths, heads=heads, dims=dims, dtype=dtype, seed=seed)
    # The last request's first half was computed before.
    cuts = [(i, 0 if i < len(lengths) - 1 or length < 5 else length // 2, length) for i, length in enumerate(lengths)]
    for (request, start, _), found in zip(cuts, prompts.attend(cuts, window, softcap), strict=True):
        expected = prompts.exact(request, window, softcap)[start:]
        torch.testing.assert_close(found.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.usefixtures("kernel_only")
@settings(max_examples=30, deadline=None)
@given(data=st.data(), window=st.sampled_from([None, 40]), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_however_a_prompt_is_cut_and_whoever_is_beside_it_the_bits_are_the_same(
    data: st.DataObject, window: int | None, dtype: torch.dtype
) -> None:
    length = 2 * PART + 30
    prompts = draw([length, 50], dims=(64, 64), heads=(3, 1), dtype=dtype)
    whole = prompts.attend([(0, 0, length)], window)[0]
    # Chunks have two tokens at least: one alone is the other kernel's.
    edges = [0]
    while (place := edges[-1] + data.draw(st.integers(2, length))) <= length - 2:
        edges.append(place)
    edges.append(length)
    parts = []
    for start, stop in itertools.pairwise(edges):
        parts.append(prompts.attend([(1, 0, 50), (0, start, stop)], window)[1])
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.usefixtures("kernel_only")
def test_the_number_of_threads_changes_no_bit() -> None:
    prompts, before = draw([200, 90, 33]), torch.get_num_threads()
    cuts = [(0, 0, 200), (1, 40, 90), (2, 0, 33)]
    results = []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            results.append(torch.cat(prompts.attend(cuts)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.usefixtures("kernel_only")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["keys", "values"])
def test_numbers_gone_wrong_show_in_their_own_request_alone(part: str, value: float) -> None:
    prompts = draw([60, 150, 70])
    cuts = [(0, 0, 60), (1, 0, 150), (2, 10, 70)]
    before = prompts.attend(cuts)
    cache: Tensor = getattr(prompts, part)
    cache[prompts.tables[1][1] * BLOCK_SIZE + 3] = value
    after = prompts.attend(cuts)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert not after[1][BLOCK_SIZE + 3 :].isfinite().all()


@given(chunks=st.lists(st.tuples(st.integers(2, 3 * QUERIES), st.integers(0, 300)), min_size=1, max_size=6))
def test_a_plan_covers_every_row_once(chunks: list[tuple[int, int]]) -> None:
    given, row = [], 0
    for request, (num_new, num_before) in enumerate(chunks):
        given.append((request, row, row + num_new, num_before + num_new))
        row += num_new
    plan = make_chunk_plan(given, torch.zeros(len(chunks), 1, dtype=torch.int32).numpy(), BLOCK_SIZE)
    positions = dict[int, tuple[int, int]]()
    for request, first, count, position in plan.pieces.tolist():
        assert 0 < count <= QUERIES
        positions |= {first + i: (request, position + i) for i in range(count)}
    expected = {
        start + i: (request, length - (stop - start) + i)
        for request, start, stop, length in given
        for i in range(stop - start)
    }
    assert positions == expected
    assert sum(plan.pieces[:, 2]) == row
