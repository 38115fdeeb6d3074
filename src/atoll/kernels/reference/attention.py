"""Causal attention over packed examples (training) and over a paged KV cache (engine), in PyTorch.

A window of w lets the token at position p see positions p - w + 1 ... p, as transformers defines it. Heads may be
grouped (GQA): num_heads is a multiple of num_kv_heads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from atoll.kernels.spans import Span


def attend_packed(
    q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], *, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """Examples one by one; differentiable. Arguments as in `kernels.attention.packed_attention`."""
    # `split` and not slices: its backward is one concatenation, that of n slices n tensors of the full length.
    parts = zip(*(torch.split(x, [span.stop - span.start for span in spans]) for x in (q, k, v)), strict=True)
    found = []
    for span, (qi, ki, vi) in zip(spans, parts, strict=True):
        if span.prefix_stop == span.prefix_start:
            found.append(_causal(qi, ki, vi, scale=scale, window=window, softcap=softcap))
            continue
        seen = slice(span.prefix_start, span.prefix_stop)
        ki, vi = torch.cat([k[seen], ki]), torch.cat([v[seen], vi])
        mask = _additive(_visible(len(qi), len(ki), window, q.device), q.dtype)
        found.append(_attend(*_heads_first(qi, ki, vi), scale=scale, mask=mask, softcap=softcap))
    return torch.cat(found)


def attend_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    chunk: Chunk,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """[new tokens, num_heads, value_dim] of one chunk; arguments as in `kernels.attention.paged_attention`."""
    rows = slice(chunk.start, chunk.stop)
    if chunk.positions is None:
        return _causal(q[rows], k[rows], v[rows], scale=scale, window=window, softcap=softcap)
    past = keys.index_select(0, chunk.positions), values.index_select(0, chunk.positions)
    mask = chunk.mask(window, q.dtype)
    return _attend(*_heads_first(q[rows], *past), scale=scale, mask=mask, softcap=softcap)


def attend_group(
    q: Tensor, keys: Tensor, values: Tensor, group: Group, *, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """[n, num_heads, value_dim] of one group; arguments as in `kernels.attention.paged_attention`."""
    n, length = group.positions.shape
    num_kv_heads = keys.shape[1]
    flat = group.positions.flatten()
    k = keys.index_select(0, flat).view(n, length, num_kv_heads, -1).transpose(1, 2)
    v = values.index_select(0, flat).view(n, length, num_kv_heads, -1).transpose(1, 2)
    # With one query each, the heads of a group can stand in the place of query tokens: nothing is repeated.
    grouped = q.index_select(0, group.rows).view(n, num_kv_heads, -1, q.shape[-1])
    out = _scores_and_sum(grouped, k, v, scale=scale, mask=group.mask(window, q.dtype), softcap=softcap)
    return out.reshape(n, q.shape[1], -1)


def make_groups(
    rows: Iterable[tuple[int, int, int]], block_table: Tensor, block_size: int, device: torch.device
) -> list[Group]:
    """rows: (request, its row of q, its number of positions). block_table: [requests, max_blocks] int64."""
    by_length: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for entry in rows:
        # Padding a group to its longest member then costs at most as much again.
        by_length[entry[2].bit_length()].append(entry)
    groups = []
    for entries in by_length.values():
        requests, places, lengths = (list(column) for column in zip(*entries, strict=True))
        positions = flat_positions(block_table[requests], lengths, block_size)
        groups.append(Group(torch.tensor(places).to(device), positions.to(device), torch.tensor(lengths).to(device)))
    return groups


def flat_positions(block_table: Tensor, lengths: list[int], block_size: int) -> Tensor:
    """[n, longest] flat cache positions of each request's tokens. block_table: [n, max_blocks] int64.

    Padding repeats the request's own first token: nothing that another request has left in the cache is ever read, so
    that not even its infinities could leak through a mask.
    """
    token = torch.arange(max(lengths)).expand(len(lengths), -1)
    token = torch.where(token < torch.tensor(lengths)[:, None], token, 0)
    return block_table.gather(1, token // block_size) * block_size + token % block_size


@dataclass
class Chunk:
    """Several new tokens of one request; `positions` of all its tokens, or None when all of them are new."""

    start: int
    stop: int
    length: int
    positions: Tensor | None
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[new tokens, all tokens], additive."""
        if window not in self.masks:
            assert self.positions is not None
            shape = (self.stop - self.start, self.length)
            self.masks[window] = _additive(_visible(*shape, window, self.positions.device), dtype)
        return self.masks[window]


@dataclass
class Group:
    """Requests with one new token each. rows: [n]; positions: [n, longest], flat; seq_lens: [n]."""

    rows: Tensor
    positions: Tensor
    seq_lens: Tensor
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[n, 1, 1, longest], additive."""
        if window not in self.masks:
            ages = self.seq_lens[:, None] - 1 - torch.arange(self.positions.shape[1], device=self.positions.device)
            visible = ages >= 0
            if window is not None:
                visible &= ages < window
            self.masks[window] = _additive(visible, dtype)[:, None, None, :]
        return self.masks[window]


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
