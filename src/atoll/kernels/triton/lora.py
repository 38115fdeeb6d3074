# ruff: noqa: N803
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"
"""The LoRA products of modules that share an input, on CUDA: shrink to the rank, then expand and add.

The rows of a slot are cut into tiles, and a program works on one tile of one module. With a few rows a slot, as in
decoding, a tile is as small as the tensor cores allow and reading the weights is what costs; the input is then split
as well, so that few slots still keep the whole device busy. With many rows this is a grouped matrix product. Partial
sums are stored and not added atomically: the same batch gives the same bits.
Source: Punica, arXiv 2310.18547; S-LoRA, arXiv 2311.03285.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_FEW_ROWS, _MANY_ROWS = 16, 64  # rows of a tile; tl.dot takes no less than 16
_SPLIT_FEATURES = 1024  # input features of one program where rows are few
_BLOCK_FEATURES = 64
_BLOCK_COLUMNS = 128
_MIN_RANK = 16  # of tl.dot

_WEIGHT_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Tiles(NamedTuple):
    """The rows of one step in pieces of one slot each; made once a step, shared by all layers.

    places: [n, 3] int32 on the device: slot, first row, stop; a piece without rows costs nothing. num_rows: the most
    rows that a piece has. max_rank: the most that any table's weights have, where it is not left to each table.
    """

    places: Tensor
    num_rows: int
    max_rank: int | None = None


class GroupTable(NamedTuple):
    """Where the weights of the modules that share an input lie; all on the device.

    addresses: [num_slots, modules, 2] int64, of a [rank, in_features] and of b.T [rank, out_features of the module],
    both C-contiguous, of type `dtype`. ranks: [num_slots, modules] integers, 0 where a slot leaves a module alone.
    scalings: [num_slots, modules] float32. columns: [modules + 1] integers, where each module's columns begin in `y`.
    max_rank, max_columns: the most that a slot, a module has.
    """

    addresses: Tensor
    ranks: Tensor
    scalings: Tensor
    columns: Tensor
    dtype: torch.dtype
    max_rank: int
    max_columns: int


def cut_tiles(segments: Sequence[tuple[int, int, int]], device: torch.device) -> Tiles:
    """segments: (slot, start, stop); slot -1, the bare base model, gets no tile."""
    longest = max((stop - start for slot, start, stop in segments if slot >= 0), default=0)
    num_rows = _FEW_ROWS if longest <= 2 * _FEW_ROWS else _MANY_ROWS
    return Tiles(_cut(segments, num_rows).to(device, non_blocking=True), num_rows)


def _cut(segments: Sequence[tuple[int, int, int]], num_rows: int) -> Tensor:
    places = [
        (slot, first, min(first + num_rows, stop))
        for slot, start, stop in segments
        if slot >= 0
        for first in range(start, stop, num_rows)
    ]
    return torch.tensor(places, dtype=torch.int32).view(-1, 3)


def empty_tiles(num_tokens: int, max_rank: int, device: torch.device) -> Tiles:
    """Tiles of a step of so many tokens, for `refill`: as many as there are when every token has a slot of its own."""
    return Tiles(torch.zeros(num_tokens, 3, dtype=torch.int32, device=device), _FEW_ROWS, max_rank)


def refill(tiles: Tiles, segments: Sequence[tuple[int, int, int]]) -> None:
    """Put other segments into tiles that kernels read already, in place; tiles that are left over have no rows."""
    places = torch.zeros(len(tiles.places), 3, dtype=torch.int32)
    cut = _cut(segments, tiles.num_rows)
    places[: len(cut)] = cut
    tiles.places.copy_(places)


def add_group(x: Tensor, y: Tensor, tiles: Tiles, table: GroupTable) -> None:
    """Add every module's LoRA product to its columns of `y`, in place; rows without a tile stay unchanged.

    x: [tokens, in_features]. y: [tokens, out_features]. Both of one dtype and with adjacent columns. Products are taken
    in that dtype and summed in float32.
    """
    num_tiles, num_modules = len(tiles.places), table.ranks.shape[1]
    max_rank = table.max_rank if tiles.max_rank is None else tiles.max_rank
    if num_tiles == 0 or max_rank == 0:
        return
    num_tokens, in_features = x.shape
    num_splits = triton.cdiv(in_features, _SPLIT_FEATURES) if tiles.num_rows == _FEW_ROWS else 1
    split = triton.cdiv(triton.cdiv(in_features, num_splits), _BLOCK_FEATURES) * _BLOCK_FEATURES
    block_rank = max(_MIN_RANK, triton.next_power_of_2(max_rank))
    hidden = torch.empty(num_splits, num_modules, num_tokens, block_rank, dtype=torch.float32, device=x.device)
    weight = _WEIGHT_DTYPES[table.dtype]
    _shrink[num_tiles, num_modules, num_splits](
        x, hidden, tiles.places, table.addresses, table.ranks, table.scalings,
        num_modules, num_tokens, in_features, x.stride(0),
        WEIGHT=weight, SPLIT=split, ROWS=tiles.num_rows, RANK=block_rank, FEATURES=_BLOCK_FEATURES,
    )  # fmt: skip
    _expand[num_tiles, num_modules, triton.cdiv(table.max_columns, _BLOCK_COLUMNS)](
        hidden, y, tiles.places, table.addresses, table.ranks, table.columns,
        num_modules, num_tokens, num_splits, y.stride(0),
        WEIGHT=weight, ROWS=tiles.num_rows, RANK=block_rank, COLUMNS=_BLOCK_COLUMNS,
    )  # fmt: skip


@triton.jit
def _shrink(
    x, hidden, places, addresses, ranks, scalings,
    num_modules, num_tokens, in_features, x_stride,
    WEIGHT: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """hidden [splits, modules, tokens, RANK] = scaling * x @ a.T, over the features of each split."""
    tile, module, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot, start, stop = tl.load(places + 3 * tile), tl.load(places + 3 * tile + 1), tl.load(places + 3 * tile + 2)
    entry = slot * num_modules + module
    rank = tl.load(ranks + entry)
    if (rank == 0) | (start >= stop):
        return
    a = tl.load(addresses + 2 * entry).to(tl.pointer_type(WEIGHT))
    rows = start + tl.arange(0, ROWS)[:, None]
    r = tl.arange(0, RANK)[None, :]
    sums = tl.zeros([ROWS, RANK], dtype=tl.float32)
    for first in range(split * SPLIT, min((split + 1) * SPLIT, in_features), FEATURES):
        k = first + tl.arange(0, FEATURES)
        inputs = tl.load(x + rows * x_stride + k[None, :], mask=(rows < stop) & (k[None, :] < in_features), other=0.0)
        weights = tl.load(a + r * in_features + k[:, None], mask=(r < rank) & (k[:, None] < in_features), other=0.0)
        sums = tl.dot(inputs, weights.to(inputs.dtype), sums, input_precision="ieee")
    sums *= tl.load(scalings + entry)
    out = hidden + ((split * num_modules + module) * num_tokens + rows) * RANK + r
    tl.store(out, sums, mask=rows < stop)


@triton.jit
def _expand(
    hidden, y, places, addresses, ranks, columns,
    num_modules, num_tokens, num_splits, y_stride,
    WEIGHT: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """y += the sum of hidden's splits @ b.T, in the columns of each module."""
    tile, module, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot, start, stop = tl.load(places + 3 * tile), tl.load(places + 3 * tile + 1), tl.load(places + 3 * tile + 2)
    entry = slot * num_modules + module
    rank = tl.load(ranks + entry)
    left, right = tl.load(columns + module), tl.load(columns + module + 1)
    if (rank == 0) | (start >= stop) | (left + block * COLUMNS >= right):
        return
    b = tl.load(addresses + 2 * entry + 1).to(tl.pointer_type(WEIGHT))
    rows = start + tl.arange(0, ROWS)[:, None]
    r = tl.arange(0, RANK)
    inputs = tl.zeros([ROWS, RANK], dtype=tl.float32)
    for split in range(num_splits):
        part = hidden + ((split * num_modules + module) * num_tokens + rows) * RANK + r[None, :]
        inputs += tl.load(part, mask=rows < stop, other=0.0)
    column = block * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    is_ours = column < right - left
    weights = tl.load(b + r[:, None] * (right - left) + column, mask=(r[:, None] < rank) & is_ours, other=0.0)
    out = y + rows * y_stride + left + column
    old = tl.load(out, mask=(rows < stop) & is_ours, other=0.0)
    sums = tl.dot(inputs.to(old.dtype), weights.to(old.dtype), old.to(tl.float32), input_precision="ieee")
    tl.store(out, sums.to(old.dtype), mask=(rows < stop) & is_ours)
