"""The Triton LoRA kernels against a loop over rows: on the GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from atoll.kernels.triton.lora import GroupTable, add_group, cut_tiles
from support.interpreter import DEVICE

POPULARITY = {
    "identical": [2] * 12,
    "distinct": list(range(12)),
    "uniform": [0, 0, 0, 1, 1, 1, 2, 2, 2, -1, -1, -1],
    "zipf": [-1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 3],
    "base only": [-1] * 12,
}
NUM_SLOTS = 12
Weights = dict[tuple[int, int], tuple[Tensor, Tensor, float]]
"""(slot, module) -> a [rank, in_features], b.T [rank, out_features], scaling."""


def segments_of(slots: list[int]) -> list[tuple[int, int, int]]:
    starts = itertools.accumulate((len(list(rows)) for _, rows in itertools.groupby(slots)), initial=0)
    return [
        (slot, start, stop)
        for (slot, _), (start, stop) in zip(itertools.groupby(slots), itertools.pairwise(starts), strict=True)
    ]


def make_weights(ranks: list[int], in_features: int, widths: list[int], dtype: torch.dtype) -> Weights:
    """Every fourth slot leaves the last module alone; so does none of the first."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for slot, module in itertools.product(range(NUM_SLOTS), range(len(widths))):
        rank = ranks[(slot + module) % len(ranks)]
        if slot % 4 == 1 and module == len(widths) - 1 and module > 0:
            continue
        a = torch.randn(rank, in_features, generator=generator) / in_features**0.5
        b = torch.randn(rank, widths[module], generator=generator) / rank**0.5
        weights[slot, module] = a.to(DEVICE, dtype), b.to(DEVICE, dtype), 0.5 + slot
    return weights


def make_table(weights: Weights, widths: list[int], dtype: torch.dtype) -> GroupTable:
    addresses = torch.zeros(NUM_SLOTS, len(widths), 2, dtype=torch.int64)
    ranks, scalings = torch.zeros(NUM_SLOTS, len(widths), dtype=torch.int32), torch.zeros(NUM_SLOTS, len(widths))
    for (slot, module), (a, b, scaling) in weights.items():
        addresses[slot, module] = torch.tensor([a.data_ptr(), b.data_ptr()])
        ranks[slot, module], scalings[slot, module] = a.shape[0], scaling
    columns = torch.tensor([0, *itertools.accumulate(widths)], dtype=torch.int32)
    tensors = [tensor.to(DEVICE) for tensor in (addresses, ranks, scalings, columns)]
    return GroupTable(*tensors, dtype=dtype, max_rank=int(ranks.max()), max_columns=max(widths))


def by_row(x: Tensor, y: Tensor, slots: list[int], weights: Weights, widths: list[int]) -> Tensor:
    """In float64."""
    rows = []
    for row, slot in enumerate(slots):
        parts = list(y[row].double().split(widths))
        for module in range(len(widths)):
            if (lora := weights.get((slot, module))) is not None:
                a, b, scaling = lora
                parts[module] = parts[module] + scaling * (x[row].double() @ a.double().T) @ b.double()
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def check(
    slots: list[int],
    ranks: list[int],
    *,
    in_features: int = 40,
    widths: tuple[int, ...] = (24, 8, 8),
    dtype: torch.dtype = torch.float32,
    weight_dtype: torch.dtype | None = None,
) -> None:
    weight_dtype = weight_dtype or dtype
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(slots), in_features, generator=generator).to(DEVICE, dtype)
    y = torch.randn(len(slots), sum(widths), generator=generator).to(DEVICE, dtype)
    weights = make_weights(ranks, in_features, list(widths), weight_dtype)
    table = make_table(weights, list(widths), weight_dtype)
    ours = y.clone()
    add_group(x, ours, cut_tiles(segments_of(slots), DEVICE), table)
    tolerance = 1e-5 if dtype is torch.float32 else 4e-2
    torch.testing.assert_close(
        ours.double(), by_row(x, y, slots, weights, list(widths)), atol=tolerance, rtol=tolerance
    )
    base = [row for row, slot in enumerate(slots) if slot < 0]
    assert torch.equal(ours[base], y[base]), "rows of the bare base model must stay as they were"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ranks", [[1], [4, 16, 7]])
@pytest.mark.parametrize("popularity", POPULARITY)
def test_equals_the_row_by_row_reference(popularity: str, ranks: list[int], dtype: torch.dtype) -> None:
    check(POPULARITY[popularity], ranks, dtype=dtype)


@pytest.mark.parametrize("slots", [[0] * 33, [0] * 70 + [3], [0] * 5 + [-1] * 3 + [1] * 129])
def test_many_rows_of_a_slot(slots: list[int]) -> None:
    check(slots, [4, 16, 7])


def test_a_wide_input_is_split_and_a_wide_output_cut() -> None:
    check([0, 0, 3, -1, 5], [8, 33], in_features=2500, widths=(300, 8))
    check([0] * 40 + [1], [8, 33], in_features=1100, widths=(8, 130))


def test_large_ranks() -> None:
    check([0, 1, 1, 2], [128, 4], in_features=24, widths=(16,))


def test_weights_in_bfloat16_beside_float32() -> None:
    check(POPULARITY["zipf"], [4, 16], weight_dtype=torch.bfloat16)


def test_rows_with_other_strides() -> None:
    """As part of a wider tensor, whose other columns stay untouched."""
    weights = make_weights([4], 16, [8], torch.float32)
    table = make_table(weights, [8], torch.float32)
    x, y = torch.randn(3, 20, device=DEVICE)[:, :16], torch.zeros(3, 30, device=DEVICE)
    add_group(x, y[:, 10:18], cut_tiles([(0, 0, 3)], DEVICE), table)
    expected = by_row(x, torch.zeros(3, 8, device=DEVICE), [0] * 3, weights, [8])
    torch.testing.assert_close(y[:, 10:18].double(), expected, atol=1e-5, rtol=1e-5)
    assert not y[:, :10].any()
    assert not y[:, 18:].any()
