"""Packed and paged attention against attention written out: one query, one key, one number at a time."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from atoll.kernels.attention import PagedLayout, packed_attention, paged_attention
from atoll.kernels.kv import KVCache, KVShape, block_bytes

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
    out = packed_attention(q, k, v, starts, scale=SCALE, window=window, softcap=softcap)
    for start, stop in itertools.pairwise(starts):
        torch.testing.assert_close(out[start:stop], naive(q[start:stop], k[start:stop], v[start:stop], window, softcap))


@OPTIONS
def test_packed_gradients_stay_within_the_example(window: int | None, softcap: float | None) -> None:
    starts = [0, 12, 13, 25]
    packed, alone = draw(25, grad=True), draw(25, grad=True)
    weight = torch.randn(25, HEADS, VALUE_DIM, generator=torch.Generator().manual_seed(1))
    out = packed_attention(*packed, starts, scale=SCALE, window=window, softcap=softcap)
    q, k, v = alone
    reference = naive(q[:12], k[:12], v[:12], window, softcap)
    gradients = torch.autograd.grad((out * weight)[:12].sum(), packed)
    expected = torch.autograd.grad((reference * weight[:12]).sum(), alone)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
        assert not mine[12:].any()


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
