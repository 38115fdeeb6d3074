"""The segmented product against a loop over single rows, across popularity, rank and dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atoll.kernels.lora import Dropout, LoraWeights, add_lora

POPULARITY = {
    "identical": [0] * 12,
    "distinct": list(range(12)),
    "uniform": [0, 0, 0, 1, 1, 1, 2, 2, 2, -1, -1, -1],
    "zipf": [-1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 3],
    "base only": [-1] * 12,
}


def segments_of(slots: list[int]) -> list[tuple[int, int, int]]:
    return [(slot, slots.index(slot), slots.index(slot) + slots.count(slot)) for slot in dict.fromkeys(slots)]


def by_row(x: Tensor, y: Tensor, slots: list[int], weights: dict[int, LoraWeights]) -> Tensor:
    rows = []
    for i, slot in enumerate(slots):
        row = y[i]
        if slot in weights:
            lora = weights[slot]
            row = row + lora.scaling * (lora.b.to(x.dtype) @ (lora.a.to(x.dtype) @ x[i]))
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("popularity", POPULARITY)
def test_equals_the_row_by_row_reference(popularity: str, gradients: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    slots = POPULARITY[popularity]
    weights = {
        slot: LoraWeights(torch.randn(rank, 24) / 5, torch.randn(40, rank) / 5, 1.5)
        for slot, rank in zip(range(12), [1, 4, 7, 16] * 3, strict=True)
    }
    x, y = torch.randn(12, 24, dtype=dtype), torch.randn(12, 40, dtype=dtype)
    expected = by_row(x, y, slots, weights)
    with torch.set_grad_enabled(gradients):
        ours = add_lora(x, y.clone(), segments_of(slots), weights)
    tolerance = 1e-5 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)


def test_gradients_equal_the_reference() -> None:
    torch.manual_seed(0)
    slots = POPULARITY["zipf"]
    weights = {slot: LoraWeights(torch.randn(3, 24), torch.randn(40, 3), 0.5) for slot in range(3)}
    grads = []
    for function in (
        lambda x, y: add_lora(x, y.clone(), segments_of(slots), weights),
        lambda x, y: by_row(x, y, slots, weights),
    ):
        torch.manual_seed(1)
        x, y = torch.randn(12, 24, requires_grad=True), torch.randn(12, 40, requires_grad=True)
        leaves = [x, y, *(t.requires_grad_() for lora in weights.values() for t in (lora.a, lora.b))]
        grads.append(torch.autograd.grad((function(x, y) ** 2).sum(), leaves))
    for ours, reference in zip(*grads, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)


def test_dropout_is_a_function_of_its_seed_and_keeps_the_mean() -> None:
    x, y = torch.ones(4000, 24), torch.zeros(4000, 8)
    weights = {0: LoraWeights(torch.ones(2, 24), torch.ones(8, 2), 1.0)}
    segments = [(0, 0, 4000)]
    once, again, other = (
        add_lora(x.requires_grad_(), y.clone(), segments, weights, {0: Dropout(0.25, seed)}) for seed in (5, 5, 6)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert once.mean().item() == pytest.approx(48.0, rel=0.01)
