"""The grouped product against the one for each module, across popularity, rank, dtype and chosen modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atoll.kernels.cpu import lora as cpu
from atoll.kernels.lora import LoraRows, LoraTable, LoraWeights, add_lora_group
from atoll.kernels.reference.lora import add_lora_group as add_lora_group_by_module

IN_FEATURES, OUT_SIZES = 72, (40, 24, 8)
POPULARITY = {
    "identical": [0] * 21,
    "distinct": list(range(12)),
    "uniform": [-1] * 3 + [0] * 3 + [1] * 3 + [2] * 3,
    "zipf": [-1, *[0] * 19, *[1] * 4, 2, 2, 3],
    "base only": [-1] * 12,
}
RANKS = [1, 4, 7, 16, 33, 128]
TARGETS = {"all": (0, 1, 2), "first and last": (0, 2), "one": (1,)}


def segments_of(slots: list[int]) -> list[tuple[int, int, int]]:
    return [(slot, slots.index(slot), slots.index(slot) + slots.count(slot)) for slot in dict.fromkeys(slots)]


def transposed(rank: int, out_features: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(rank, out_features) / rank**0.5).to(dtype).t()


def filled_table(num_slots: int, dtype: torch.dtype, targets: list[tuple[int, ...]], ranks: list[int]) -> LoraTable:
    table = LoraTable(num_slots, IN_FEATURES, OUT_SIZES, dtype=dtype, device=torch.device("cpu"))
    for slot in range(num_slots):
        for module in targets[slot % len(targets)]:
            rank = ranks[(slot + module) % len(ranks)]
            a = (torch.randn(rank, IN_FEATURES) / IN_FEATURES**0.5).to(dtype)
            table.set(slot, module, LoraWeights(a, transposed(rank, OUT_SIZES[module], dtype), 0.5 + slot))
    return table


def by_module(x: Tensor, y: Tensor, slots: list[int], table: LoraTable) -> Tensor:
    """In double precision."""
    out = y.double()
    add_lora_group_by_module(x.double(), out, segments_of(slots), table)
    return out


def grouped(x: Tensor, y: Tensor, slots: list[int], table: LoraTable) -> Tensor:
    out = y.clone()
    add_lora_group(x, out, LoraRows(segments_of(slots), x.device), table)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("popularity", POPULARITY)
def test_equals_the_product_for_each_module(popularity: str, weight_dtype: torch.dtype, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    slots = POPULARITY[popularity]
    x, y = torch.randn(len(slots), IN_FEATURES).to(dtype), torch.randn(len(slots), sum(OUT_SIZES)).to(dtype)
    for targets in ([TARGETS["all"]], [TARGETS["one"], TARGETS["first and last"]]):
        table = filled_table(12, weight_dtype, targets, RANKS)
        expected = by_module(x, y, slots, table)
        scale = expected.abs().max().item()
        tolerance = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 4e-3}[dtype] * scale
        torch.testing.assert_close(grouped(x, y, slots, table).double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_depends_on_its_batch_mates_by_rounding_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    table = filled_table(3, torch.float32, [TARGETS["all"]], [16])
    slots = [0] * 11 + [1] * 4 + [2]
    x, y = torch.randn(16, IN_FEATURES).to(dtype), torch.randn(16, sum(OUT_SIZES)).to(dtype)
    together = grouped(x, y, slots, table)
    for row, slot in enumerate(slots):
        alone = grouped(x[row : row + 1], y[row : row + 1], [slot], table)
        tolerance = {4: 2e-6, 2: 8e-3}[dtype.itemsize] * together[row].abs().max().item()
        torch.testing.assert_close(alone[0], together[row], atol=tolerance, rtol=0)


def test_however_many_threads_share_the_work_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    table = filled_table(4, torch.float32, [TARGETS["all"], TARGETS["one"]], RANKS)
    slots = [-1] * 2 + [0] * 20 + [1] * 9 + [2] + [3] * 8
    x, y = torch.randn(len(slots), IN_FEATURES), torch.randn(len(slots), sum(OUT_SIZES))
    results = []
    for num_threads in (1, 2, 3, 8):
        monkeypatch.setattr(cpu, "num_threads", lambda n=num_threads: n)
        results.append(grouped(x, y, slots, table))
    assert all(torch.equal(result, results[0]) for result in results)


def test_rows_without_weights_keep_their_bits_even_beside_infinities() -> None:
    table = filled_table(2, torch.float32, [TARGETS["one"]], [4])
    x, y = torch.randn(9, IN_FEATURES), torch.randn(9, sum(OUT_SIZES))
    x[3] = float("inf")
    out = grouped(x, y, [-1] * 3 + [0] * 3 + [1] * 3, table)
    assert torch.equal(out[:3], y[:3])
    assert not out[3, 40:64].isfinite().any()
    others = torch.ones(sum(OUT_SIZES), dtype=torch.bool)
    others[40:64] = False
    assert torch.equal(out[:, others], y[:, others])
    assert out[4:].isfinite().all()


def test_a_cleared_module_and_a_cleared_slot_are_left_alone() -> None:
    table = filled_table(2, torch.float32, [TARGETS["all"]], [4])
    x, y = torch.randn(2, IN_FEATURES), torch.randn(2, sum(OUT_SIZES))
    table.clear(0, 1)
    out = grouped(x, y, [0, 1], table)
    assert torch.equal(out[0, 40:64], y[0, 40:64])
    assert not torch.equal(out[0, :40], y[0, :40])
    table.clear(0, 0)
    table.clear(0, 2)
    table.clear(0, 2)
    assert table.slots == {1}
    assert torch.equal(grouped(x, y, [0, 1], table)[0], y[0])


def test_weights_that_lie_otherwise_are_refused() -> None:
    table = LoraTable(1, IN_FEATURES, OUT_SIZES, dtype=torch.float32, device=torch.device("cpu"))
    a, b = torch.randn(4, IN_FEATURES), transposed(4, 40, torch.float32)
    for wrong in ((a, b.contiguous()), (a.t().contiguous().t(), b), (a.bfloat16(), b.bfloat16())):
        with pytest.raises(ValueError, match="do not lie"):
            table.set(0, 0, LoraWeights(*wrong, 1.0))
    assert not table.slots


def test_cuda_reads_the_same_table() -> None:
    """In Triton's interpreter where there is no GPU."""
    triton = pytest.importorskip("atoll.kernels.triton.lora")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = filled_table(4, torch.float32, [TARGETS["all"], TARGETS["one"]], [4, 16])
    slots = [-1] * 2 + [0] * 5 + [1] * 3 + [3]
    x, y = torch.randn(len(slots), IN_FEATURES), torch.randn(len(slots), sum(OUT_SIZES))
    expected = grouped(x, y, slots, table)
    for module, weights in enumerate(table.weights):
        for slot, (a, b, scaling) in list(weights.items()):
            table.set(slot, module, LoraWeights(a.to(device), b.t().to(device).t(), scaling))
    table.device = device
    out = y.to(device)
    triton.add_group(x.to(device), out, triton.cut_tiles(segments_of(slots), device), table.on_device())
    torch.testing.assert_close(out.cpu(), expected, atol=2e-5, rtol=1e-5)
