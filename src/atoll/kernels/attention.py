"""Causal attention over packed examples (training) and over a paged KV cache (engine): the PyTorch references.

A window of w lets the token at position p see positions p - w + 1 ... p, as transformers defines it. Heads may be
grouped (GQA): num_heads is a multiple of num_kv_heads.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_start: Sequence[int],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of several examples packed in one row, each causal and blind to the others; differentiable.

    q: [tokens, num_heads, key_dim]. k, v: [tokens, num_kv_heads, key_dim or value_dim]. Example i is the tokens
    [query_start[i], query_start[i + 1]). Returns [tokens, num_heads, value_dim]. Memory grows with the longest example.
    """
    lengths = [stop - start for start, stop in itertools.pairwise(query_start)]
    # `split` and not slices: its backward is one concatenation, that of n slices n tensors of the full length.
    parts = zip(*(torch.split(x, lengths) for x in (q, k, v)), strict=True)
    return torch.cat([_causal(qi, ki, vi, scale=scale, window=window, softcap=softcap) for qi, ki, vi in parts])


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    layout: PagedLayout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of a step's new tokens over all tokens of their own requests.

    q: [tokens, num_heads, key_dim]. k, v: [tokens, num_kv_heads, key_dim or value_dim], the new tokens' own, already in
    the cache. keys, values: one layer of the cache, [positions, num_kv_heads, dim].
    Returns [tokens, num_heads, value_dim].
    """
    out = q.new_empty(q.shape[0], q.shape[1], v.shape[-1])
    for chunk in layout.chunks:
        rows = slice(chunk.start, chunk.stop)
        if chunk.positions is None:
            out[rows] = _causal(q[rows], k[rows], v[rows], scale=scale, window=window, softcap=softcap)
            continue
        mask = chunk.mask(window, q.dtype)
        past = keys.index_select(0, chunk.positions), values.index_select(0, chunk.positions)
        out[rows] = _attend(*_heads_first(q[rows], *past), scale=scale, mask=mask, softcap=softcap)
    for group in layout.groups:
        out.index_copy_(0, group.rows, _decode(q, keys, values, group, scale=scale, window=window, softcap=softcap))
    return out


class PagedLayout:
    """What all layers of one step share: where each request's tokens lie in the cache and who sees whom.

    Requests with one new token are attended to together, in groups of like length; a request with several on its own.
    """

    def __init__(
        self, query_start: Tensor, seq_lens: Tensor, block_table: Tensor, *, block_size: int, device: torch.device
    ) -> None:
        """query_start: [n + 1]; seq_lens: [n], with this step's tokens; block_table: [n, max_blocks]; all on CPU."""
        starts, lengths = query_start.tolist(), seq_lens.tolist()
        table = block_table.long()
        self.chunks: list[_Chunk] = []
        decodes: dict[int, list[int]] = defaultdict(list)
        for request, (start, stop) in enumerate(itertools.pairwise(starts)):
            length = lengths[request]
            if stop - start == 1:
                # Padding a group to its longest member then costs at most as much again.
                decodes[length.bit_length()].append(request)
                continue
            positions = None
            if length > stop - start:
                positions = _flat_positions(table[request : request + 1], [length], block_size)[0].to(device)
            self.chunks.append(_Chunk(start, stop, length, positions))
        self.groups = [
            _Group(
                rows=torch.tensor([starts[request] for request in requests]).to(device),
                positions=_flat_positions(table[requests], [lengths[i] for i in requests], block_size).to(device),
                seq_lens=seq_lens[requests].to(device=device, dtype=torch.long),
            )
            for requests in decodes.values()
        ]


@dataclass
class _Chunk:
    """Several new tokens of one request; `positions` of all its tokens, or None when all of them are new."""

    start: int
    stop: int
    length: int
    positions: Tensor | None
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        if window not in self.masks:
            assert self.positions is not None
            shape = (self.stop - self.start, self.length)
            self.masks[window] = _additive(_visible(*shape, window, self.positions.device), dtype)
        return self.masks[window]


@dataclass
class _Group:
    """Requests with one new token each. rows: [n]; positions: [n, longest], flat; seq_lens: [n]."""

    rows: Tensor
    positions: Tensor
    seq_lens: Tensor
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[n, 1, 1, longest]."""
        if window not in self.masks:
            ages = self.seq_lens[:, None] - 1 - torch.arange(self.positions.shape[1], device=self.positions.device)
            visible = ages >= 0
            if window is not None:
                visible &= ages < window
            self.masks[window] = _additive(visible, dtype)[:, None, None, :]
        return self.masks[window]


def _flat_positions(table: Tensor, lengths: list[int], block_size: int) -> Tensor:
    """[n, longest] flat cache positions of each request's tokens.

    Padding repeats the request's own first token: nothing that another request has left in the cache is ever read, so
    that not even its infinities could leak through a mask.
    """
    token = torch.arange(max(lengths)).expand(len(lengths), -1)
    token = torch.where(token < torch.tensor(lengths)[:, None], token, 0)
    return table.gather(1, token // block_size) * block_size + token % block_size


def _visible(num_queries: int, length: int, window: int | None, device: torch.device) -> Tensor:
    """[num_queries, length] bool: what the last `num_queries` of `length` tokens see."""
    query = torch.arange(length - num_queries, length, device=device)[:, None]
    age = query - torch.arange(length, device=device)
    return age >= 0 if window is None else (age >= 0) & (age < window)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


def _heads_first(*tensors: Tensor) -> list[Tensor]:
    """[tokens, heads, dim] -> [1, heads, tokens, dim], the layout of PyTorch's attention."""
    return [tensor.transpose(0, 1)[None] for tensor in tensors]


def _causal(q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """One whole sequence; [tokens, heads, dim] in and out."""
    length = q.shape[0]
    mask = None
    if softcap is not None or (window is not None and window < length):
        mask = _additive(_visible(length, length, window, q.device), q.dtype)
    return _attend(*_heads_first(q, k, v), scale=scale, mask=mask, softcap=softcap)


def _decode(
    q: Tensor, keys: Tensor, values: Tensor, group: _Group, *, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """[n, num_heads, value_dim] for the n requests of `group`."""
    n, length = group.positions.shape
    num_kv_heads = keys.shape[1]
    flat = group.positions.flatten()
    k = keys.index_select(0, flat).view(n, length, num_kv_heads, -1).transpose(1, 2)
    v = values.index_select(0, flat).view(n, length, num_kv_heads, -1).transpose(1, 2)
    # With one query each, the heads of a group can stand in the place of query tokens: nothing is repeated.
    grouped = q.index_select(0, group.rows).view(n, num_kv_heads, -1, q.shape[-1])
    out = _scores_and_sum(grouped, k, v, scale=scale, mask=group.mask(window, q.dtype), softcap=softcap)
    return out.reshape(n, q.shape[1], -1)


def _attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None, softcap: float | None) -> Tensor:
    """One sequence, heads first; no mask means causal. Returns [tokens, heads, dim]."""
    repeats = q.shape[1] // k.shape[1]
    if mask is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=repeats > 1)
    else:
        k, v = (x.repeat_interleave(repeats, dim=1) if repeats > 1 else x for x in (k, v))
        out = _scores_and_sum(q, k, v, scale=scale, mask=mask, softcap=softcap)
    return out[0].transpose(0, 1)


def _scores_and_sum(q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor, softcap: float | None) -> Tensor:
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    # PyTorch's fused attention has no soft cap; the order cap, mask, softmax in fp32 is transformers'.
    scores = torch.tanh(q @ k.transpose(-1, -2) * scale / softcap) * softcap + mask
    return scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype) @ v
