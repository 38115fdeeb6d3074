"""Packed and paged attention against attention written out: one query, one key, one number at a time."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atoll.kernels.attention import PackedLayout, PagedLayout, packed_attention, paged_attention
from atoll.kernels.cpu import packed as cpu_packed
from atoll.kernels.kv import KVCache, KVShape, block_bytes
from atoll.kernels.reference import attention as reference
from atoll.kernels.spans import Span
from support.packing import spans_between

HEADS, KV_HEADS, KEY_DIM, VALUE_DIM, SCALE = 6, 2, 8, 4, 0.3
OPTIONS = pytest.mark.parametrize(
    ("window", "softcap"), [(None, None), (1, None), (5, None), (None, 2.0), (5, 2.0), (1000, None)]
)


def naive(q: Tensor, k: Tensor, v: Tensor, window: int | None, softcap: float | None) -> Tensor:
    """One sequence, [tokens, heads, dim]; the queries are its last tokens."""
    length = k.shape[0]
    rows = []
    for i, query in enumerate(q):
        position = length - q.shape[0] + i
        first = 0 if window is None else max(0, position - window + 1)
        heads = []
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS)
            scores = k[first : position + 1, group] @ query[head] * SCALE
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            heads.append(scores.softmax(0) @ v[first : position + 1, group])
        rows.append(torch.stack(heads))
    return torch.stack(rows)


def draw(num_tokens: int, *, seed: int = 0, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(HEADS, KEY_DIM), (KV_HEADS, KEY_DIM), (KV_HEADS, VALUE_DIM)]
    q, k, v = (torch.randn(num_tokens, *shape, generator=generator).requires_grad_(grad) for shape in shapes)
    return q, k, v


@OPTIONS
def test_packed_equals_each_example_alone(window: int | None, softcap: float | None) -> None:
    starts = [0, 9, 10, 30, 33]
    q, k, v = draw(33)
    layout = PackedLayout(spans_between(starts))
    out = packed_attention(q, k, v, layout, scale=SCALE, window=window, softcap=softcap)
    for start, stop in itertools.pairwise(starts):
        torch.testing.assert_close(out[start:stop], naive(q[start:stop], k[start:stop], v[start:stop], window, softcap))


@OPTIONS
def test_packed_gradients_stay_within_the_example(window: int | None, softcap: float | None) -> None:
    layout = PackedLayout(spans_between([0, 12, 13, 25]))
    packed, alone = draw(25, grad=True), draw(25, grad=True)
    weight = torch.randn(25, HEADS, VALUE_DIM, generator=torch.Generator().manual_seed(1))
    out = packed_attention(*packed, layout, scale=SCALE, window=window, softcap=softcap)
    q, k, v = alone
    reference = naive(q[:12], k[:12], v[:12], window, softcap)
    gradients = torch.autograd.grad((out * weight)[:12].sum(), packed)
    expected = torch.autograd.grad((reference * weight[:12]).sum(), alone)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
        assert not mine[12:].any()


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(
        st.tuples(st.integers(0, 9), st.lists(st.integers(1, 20), min_size=1, max_size=5)), min_size=1, max_size=4
    ),
    window=st.sampled_from([None, 1, 6, 100]),
    max_queries=st.sampled_from([3, 8, 256]),
)
def test_tiles_equal_the_reference_whatever_examples_share(
    groups: list[tuple[int, list[int]]], window: int | None, max_queries: int
) -> None:
    spans = []
    row = 0
    for shared, lengths in groups:
        prefix = (row, row + shared)
        spans += [Span(*prefix)] if shared else []
        row += shared
        for length in lengths:
            spans.append(Span(row, row + length, *prefix))
            row += length
    weight = torch.randn(row, HEADS, VALUE_DIM, generator=torch.Generator().manual_seed(1))
    found = []
    with mock.patch.object(cpu_packed, "MAX_QUERIES", max_queries), mock.patch.object(cpu_packed, "MAX_SCORES", 150):
        tiles = cpu_packed.make_tiles(spans)
    for attend in (
        lambda *qkv: cpu_packed.attend(*qkv, tiles, scale=SCALE, window=window),
        lambda *qkv: reference.attend_packed(*qkv, spans, scale=SCALE, window=window, softcap=None),
    ):
        qkv = draw(row, grad=True)
        out = attend(*qkv)
        found.append([out, *torch.autograd.grad((out * weight).sum(), qkv)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_example_behind_a_prefix_equals_the_whole() -> None:
    q, k, v = draw(30)
    layout = PackedLayout([Span(0, 10), Span(10, 22, 0, 10), Span(22, 30, 0, 10)])
    for softcap in (None, 2.0):
        out = packed_attention(q, k, v, layout, scale=SCALE, softcap=softcap)
        for start, stop in ((10, 22), (22, 30)):
            own = torch.cat([torch.arange(10), torch.arange(start, stop)])
            torch.testing.assert_close(out[start:stop], naive(q[own], k[own], v[own], None, softcap)[10:])


@dataclass
class Sequence:
    """A request under way: its whole q, k, v and the blocks that it holds."""

    tensors: tuple[Tensor, Tensor, Tensor]
    blocks: list[int]
    num_done: int = 0
    outputs: list[Tensor] = field(default_factory=list)

    @property
    def num_left(self) -> int:
        return self.tensors[0].shape[0] - self.num_done


BLOCK_SIZE = 4


def step(cache: KVCache, batch: list[tuple[Sequence, int]], window: int | None, softcap: float | None) -> None:
    """Advance each request of `batch` by its number of tokens, as one step of an engine would."""
    starts, lengths, kv_index = [0], [], []
    for sequence, num_new in batch:
        starts.append(starts[-1] + num_new)
        lengths.append(sequence.num_done + num_new)
        for position in range(sequence.num_done, sequence.num_done + num_new):
            kv_index.append(sequence.blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE)
    width = max(len(sequence.blocks) for sequence, _ in batch)
    table = torch.tensor([sequence.blocks + [-1] * (width - len(sequence.blocks)) for sequence, _ in batch])
    q, k, v = (torch.cat([s.tensors[i][s.num_done : s.num_done + num_new] for s, num_new in batch]) for i in range(3))
    cache.write(0, torch.tensor(kv_index), k, v)
    layout = PagedLayout(
        torch.tensor(starts), torch.tensor(lengths), table, block_size=BLOCK_SIZE, device=torch.device("cpu")
    )
    out = paged_attention(q, k, v, cache.keys[0], cache.values[0], layout, scale=SCALE, window=window, softcap=softcap)
    for (sequence, num_new), start in zip(batch, starts[:-1], strict=True):
        sequence.outputs.append(out[start : start + num_new])
        sequence.num_done += num_new


@OPTIONS
@pytest.mark.parametrize(("seed", "dtype"), [(0, torch.float32), (1, torch.float32), (2, torch.float64)])
def test_paged_equals_whole_sequences_whatever_the_schedule(
    window: int | None, softcap: float | None, seed: int, dtype: torch.dtype
) -> None:
    """In float32 requests with one new token take the device's kernel, in float64 the reference."""
    rng = random.Random(seed)
    shapes = [KVShape(KV_HEADS, KEY_DIM, VALUE_DIM)]
    cache = KVCache.allocate(shapes, num_blocks=64, block_size=BLOCK_SIZE, dtype=dtype, device="cpu")
    for tensor in cache.keys + cache.values:
        tensor.fill_(float("nan"))  # what other requests have left must not be read, not even under a mask
    free = rng.sample(range(64), 64)
    sequences = []
    for i, length in enumerate([1, 2, 7, 16, 31, 50]):
        blocks = [free.pop() for _ in range(-(-length // BLOCK_SIZE))]
        q, k, v = (tensor.to(dtype) for tensor in draw(length, seed=100 * seed + i))
        sequences.append(Sequence((q, k, v), blocks))
    while waiting := [sequence for sequence in sequences if sequence.num_left]:
        chosen = rng.sample(waiting, rng.randint(1, len(waiting)))
        step(cache, [(s, min(rng.choice([1, 1, 3, 20]), s.num_left)) for s in chosen], window, softcap)
    for sequence in sequences:
        torch.testing.assert_close(torch.cat(sequence.outputs), naive(*sequence.tensors, window, softcap))


def test_block_bytes_is_what_a_block_takes() -> None:
    shapes = [KVShape(2, 8, 4), KVShape(1, 16, 16)]
    cache = KVCache.allocate(shapes, num_blocks=3, block_size=4, dtype=torch.bfloat16, device="cpu")
    total = sum(tensor.nbytes for tensor in cache.keys + cache.values)
    assert cache.num_blocks == 3
    assert 3 * block_bytes(shapes, block_size=4, dtype=torch.bfloat16) == total
