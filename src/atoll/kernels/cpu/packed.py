"""Causal attention over packed examples on the CPU, forward and backward, many examples in each product.

PyTorch's fused attention takes one example at a time, and its backward is slow for the short examples that adapters
are tuned on. Here examples of about the same length that begin with the same tokens are one tile: their scores are a
few batched products in float32. Backward computes the scores again, so that nothing of their size is kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from atoll.kernels.spans import Span

MAX_QUERIES = 256
MAX_SCORES = 1 << 18
"""Scores of a tile for each head: what stays in a core's cache and still fills a product."""


@dataclass(frozen=True)
class Tile:
    """`n` examples, `num_queries` tokens of each, padded, over `num_keys` tokens that come before them or are them.

    queries: [n * num_queries], keys: [n * num_keys], rows of the batch. places, rows: [real queries], where those that
    are no padding lie in the tile and in the batch. age: [num_queries, num_keys], how far a key lies behind a query.
    """

    n: int
    queries: Tensor
    keys: Tensor
    places: Tensor
    rows: Tensor
    age: Tensor


def make_tiles(spans: Sequence[Span]) -> list[Tile]:
    """Examples with one prefix and lengths within a quarter of each other share tiles; long ones are cut."""
    by_prefix = sorted(spans, key=lambda span: (span.prefix_start, span.prefix_stop, span.stop - span.start))
    tiles = []
    for (first, stop), group in itertools.groupby(by_prefix, lambda span: (span.prefix_start, span.prefix_stop)):
        prefix = list(range(first, stop))
        for members in _alike([(span.start, span.stop) for span in group]):
            longest = members[-1][1] - members[-1][0]
            for begin in range(0, longest, MAX_QUERIES):
                end = min(begin + MAX_QUERIES, longest)
                reaching = [member for member in members if member[1] - member[0] > begin]
                size = max(1, MAX_SCORES // ((end - begin) * (len(prefix) + end)))
                for some in range(0, len(reaching), size):
                    tiles.append(_tile(prefix, reaching[some : some + size], begin, end))
    return tiles


def attend(q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[Tile], *, scale: float, window: int | None) -> Tensor:
    """[tokens, num_heads, value_dim]; arguments as in `kernels.attention.packed_attention`. Differentiable."""
    out: Tensor = _Attend.apply(q, k, v, tiles, scale, window)  # type: ignore[no-untyped-call]
    return out


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[Tile], scale: float, window: int | None
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.options = tiles, scale, window
        out = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
        for tile in tiles:
            _, _, values, probabilities = _probabilities(q, k, v, tile, scale, window)
            found = torch.bmm(probabilities.flatten(1, 2), values)
            out[tile.rows] = _rows_first(found, tile.n, q.shape[1])[tile.places].to(q.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        tiles, scale, window = ctx.options
        (grad_out,) = grads
        grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
        grad_k, grad_v = (torch.zeros(x.shape, dtype=torch.float32) for x in (k, v))
        for tile in tiles:
            queries, keys, values, probabilities = _probabilities(q, k, v, tile, scale, window)
            padded = grad_out.new_zeros(len(tile.queries), *grad_out.shape[1:])
            padded[tile.places] = grad_out[tile.rows]
            grad = _heads_first(padded, tile.n, k.shape[1]).flatten(1, 2)
            above = torch.bmm(grad, values.transpose(1, 2)).view_as(probabilities)
            scores = torch._softmax_backward_data(above, probabilities, -1, torch.float32).flatten(1, 2)
            of_queries = torch.bmm(scores, keys).mul_(scale)
            grad_q[tile.rows] = _rows_first(of_queries, tile.n, q.shape[1])[tile.places].to(q.dtype)
            of_keys = torch.bmm(scores.transpose(1, 2), queries)
            of_values = torch.bmm(probabilities.flatten(1, 2).transpose(1, 2), grad)
            for total, part in ((grad_k, of_keys), (grad_v, of_values)):
                total.index_add_(0, tile.keys, _rows_first(part, tile.n, k.shape[1]))
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None, None


def _probabilities(
    q: Tensor, k: Tensor, v: Tensor, tile: Tile, scale: float, window: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scaled queries, keys, values, [n * num_kv_heads, rows, dim], and [n * num_kv_heads, group, queries, keys]."""
    num_kv_heads = k.shape[1]
    queries = _heads_first(q.index_select(0, tile.queries), tile.n, num_kv_heads).flatten(1, 2).mul_(scale)
    keys, values = (_heads_first(x.index_select(0, tile.keys), tile.n, num_kv_heads).flatten(1, 2) for x in (k, v))
    scores = torch.bmm(queries, keys.transpose(1, 2)).view(len(keys), -1, *tile.age.shape)
    hidden = tile.age < 0 if window is None else (tile.age < 0) | (tile.age >= window)
    return queries, keys, values, scores.masked_fill_(hidden, float("-inf")).softmax(-1)


def _heads_first(rows: Tensor, n: int, num_kv_heads: int) -> Tensor:
    """[n * tokens, heads, dim] -> [n * num_kv_heads, heads of a group, tokens, dim], contiguous, float32."""
    apart = rows.view(n, -1, num_kv_heads, rows.shape[1] // num_kv_heads, rows.shape[2]).permute(0, 2, 3, 1, 4)
    return apart.to(torch.float32, memory_format=torch.contiguous_format).flatten(0, 1)


def _rows_first(heads: Tensor, n: int, num_heads: int) -> Tensor:
    """[n * num_kv_heads, heads of a group * tokens, dim] -> [n * tokens, num_heads, dim]."""
    return heads.view(n, num_heads, -1, heads.shape[-1]).transpose(1, 2).flatten(0, 1)


def _alike(members: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """(start, stop), shortest first -> runs of them of about one length."""
    run: list[tuple[int, int]] = []
    for start, stop in members:
        if run and stop - start > (run[0][1] - run[0][0]) * 5 // 4 + 4:
            yield run
            run = []
        run.append((start, stop))
    yield run


def _tile(prefix: list[int], members: Sequence[tuple[int, int]], begin: int, end: int) -> Tile:
    """The tokens [begin, end) of each member; padding repeats a member's last token, which no real query sees."""
    queries, keys, places, rows = list[int](), list[int](), list[int](), list[int]()
    for number, (start, stop) in enumerate(members):
        own = [min(start + offset, stop - 1) for offset in range(end)]
        queries += own[begin:]
        keys += prefix + own
        real = range(start + begin, min(start + end, stop))
        places += range(number * (end - begin), number * (end - begin) + len(real))
        rows += real
    age = torch.arange(begin, end)[:, None] + len(prefix) - torch.arange(len(prefix) + end)
    return Tile(len(members), torch.tensor(queries), torch.tensor(keys), torch.tensor(places), torch.tensor(rows), age)
