"""Adapters that PEFT wrote answer as PEFT computes them, alone and side by side in one batch."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.adapters.bank import AdapterBank, slot_bytes
from atoll.adapters.linear import LinearGroup, MultiLoRALinear
from atoll.adapters.peft_io import AdapterWeights, read_adapter, write_adapter
from atoll.adapters.routing import BASE_SLOT, Routing
from atoll.config.fleet import LoraConfig
from atoll.kernels.lora import LoraWeights
from atoll.model.attention import PackedContext, attending
from support.adapters import peft_logits, save_random_adapter
from support.packing import spans_between
from support.tiny import make_model

TOLERANCE = 2e-5

lora_configs = st.fixed_dictionaries(
    {
        "r": st.sampled_from([1, 2, 5, 8]),
        "lora_alpha": st.sampled_from([1, 8, 16]),
        "use_rslora": st.booleans(),
        "target_modules": st.sampled_from(["all-linear", ["q_proj", "v_proj"], ["down_proj"], r".*layers\.1\..*_proj"]),
        "rank_pattern": st.sampled_from([{}, {"q_proj": 3}, {r"layers\.0\.mlp\.down_proj": 7}]),
        "alpha_pattern": st.sampled_from([{}, {"v_proj": 4}, {r"layers\.1\..*": 2}]),
        "exclude_modules": st.sampled_from([None, ["k_proj"]]),
        "layers_to_transform": st.none(),
        "lora_dropout": st.sampled_from([0.0, 0.1]),
    }
)


def packed_logits(model: Any, bank: AdapterBank, sequences: list[tuple[int, list[int]]]) -> list[torch.Tensor]:
    """Logits of (slot, ids) sequences in one batch, sorted by slot as the batch builders do."""
    order = sorted(range(len(sequences)), key=lambda i: sequences[i][0])
    lengths = [(sequences[i][0], len(sequences[i][1])) for i in order]
    ids = [token for i in order for token in sequences[i][1]]
    positions = [p for _, n in lengths for p in range(n)]
    starts = [0]
    for _, n in lengths:
        starts.append(starts[-1] + n)
    context = PackedContext(spans_between(starts))
    with torch.no_grad(), bank.routed(Routing.from_lengths(lengths)), attending(context):
        logits = model(input_ids=torch.tensor([ids]), position_ids=torch.tensor([positions]), use_cache=False).logits[0]
    parts = logits.split([n for _, n in lengths])
    return [parts[order.index(i)] for i in range(len(sequences))]


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(configs=st.lists(lora_configs, min_size=1, max_size=3), seed=st.integers(0, 2**16))
def test_a_mixed_batch_gives_the_logits_that_peft_gives_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, configs: list[dict[str, Any]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("adapters")
    plain, model = make_model(), make_model()
    model.set_attn_implementation("atoll")
    bank = AdapterBank(model, num_slots=4, max_rank=8)
    generator = torch.Generator().manual_seed(seed)
    sequences: list[tuple[int, list[int]]] = []
    folders: dict[int, Path | None] = {BASE_SLOT: None}
    for slot, config in enumerate(configs):
        folders[slot] = save_random_adapter(folder / str(slot), plain, seed=seed + slot, **config)
        bank.load(slot, read_adapter(folders[slot]))  # type: ignore[arg-type]
    for slot in [*folders, 0]:
        length = int(torch.randint(1, 20, (1,), generator=generator))
        sequences.append((slot, torch.randint(3, 400, (length,), generator=generator).tolist()))
    for (slot, ids), logits in zip(sequences, packed_logits(model, bank, sequences), strict=True):
        # Some random adapters make attention so sharp that float32 itself is this far off, PEFT's too.
        exact = peft_logits(plain, folders[slot], ids, dtype=torch.float64)
        rounding = float((peft_logits(plain, folders[slot], ids) - exact).abs().max())
        torch.testing.assert_close(logits.double(), exact, atol=TOLERANCE + 2 * rounding, rtol=1e-4)


@pytest.mark.parametrize(
    "config",
    [LoraConfig(), LoraConfig(r=3, alpha=5, use_rslora=True), LoraConfig(r=2, target_modules=("o_proj", "up_proj"))],
)
def test_peft_loads_what_the_bank_made_with_equal_logits(tmp_path: Path, config: LoraConfig) -> None:
    plain, model = make_model(), make_model()
    model.set_attn_implementation("atoll")
    bank = AdapterBank(model, num_slots=2, max_rank=16)
    weights = bank.create(1, config, seed=3)
    with torch.no_grad():
        for lora in weights.values():
            lora.b.normal_(0, 0.3)
    write_adapter(tmp_path, weights, config, base_model="tiny", all_layers=list(bank.layers))
    ids = list(range(5, 25))
    ours = packed_logits(model, bank, [(1, ids)])[0]
    torch.testing.assert_close(ours, peft_logits(plain, tmp_path, ids), atol=TOLERANCE, rtol=1e-4)
    again = read_adapter(tmp_path)
    assert {name: lora.scaling for name, lora in again.modules.items()} == {
        name: pytest.approx(lora.scaling) for name, lora in weights.items()
    }


def test_loading_and_clearing_leave_other_slots_and_higher_ranks_untouched(tmp_path: Path) -> None:
    plain, model = make_model(), make_model()
    bank = AdapterBank(model, num_slots=3, max_rank=8)
    for slot, rank in ((0, 8), (1, 2)):
        bank.load(slot, read_adapter(save_random_adapter(tmp_path / str(slot), plain, seed=slot, r=rank)))
    layer = next(iter(bank.layers.values()))
    a_slab, b_slab = layer._slabs or (torch.empty(0), torch.empty(0))
    before = a_slab[0].clone(), b_slab[0].clone()
    assert a_slab[1, 2:].abs().sum() == 0
    assert b_slab[1, 2:].abs().sum() == 0
    bank.clear(1)
    bank.load(2, read_adapter(save_random_adapter(tmp_path / "2", plain, seed=9, r=5)))
    assert torch.equal(before[0], a_slab[0])
    assert torch.equal(before[1], b_slab[0])
    assert 1 not in layer.weights


def test_the_config_on_disk_is_read_by_peft_as_it_was_meant(tmp_path: Path) -> None:
    bank = AdapterBank(make_model(), num_slots=1, max_rank=16)
    config = LoraConfig(r=4, target_modules=("q_proj", "v_proj"))
    write_adapter(tmp_path, bank.create(0, config, seed=0), config, base_model="org/base", all_layers=list(bank.layers))
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["target_modules"] == ["q_proj", "v_proj"]
    assert (written["r"], written["lora_alpha"], written["base_model_name_or_path"]) == (4, 8, "org/base")


class Siblings(torch.nn.Module):
    """Layers that share an input, under names of their own."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q = torch.nn.Linear(48, 32, bias=False, dtype=dtype)
        self.k = torch.nn.Linear(48, 16, dtype=dtype)
        self.v = torch.nn.Linear(48, 16, dtype=dtype)
        self.requires_grad_(False)


WIDTHS = {"q": 32, "k": 16, "v": 16}


def random_adapter(seed: int, names: str, rank: int) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)
    modules = {
        name: LoraWeights(
            torch.randn(rank, 48, generator=generator) / 7, torch.randn(WIDTHS[name], rank, generator=generator), 0.5
        )
        for name in names
    }
    return AdapterWeights(modules, where="test")


def layers_of(model: Siblings) -> list[MultiLoRALinear]:
    return [model.q, model.k, model.v]  # type: ignore[list-item]


@pytest.mark.parametrize("slab_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@settings(max_examples=15, deadline=None)
@given(
    adapters=st.lists(st.tuples(st.sampled_from(["qkv", "qv", "k"]), st.sampled_from([1, 4, 6, 8])), max_size=4),
    lengths=st.lists(st.tuples(st.integers(-1, 3), st.integers(1, 12)), min_size=1, max_size=6),
    grouped_first=st.booleans(),
)
def test_a_group_equals_its_siblings(
    adapters: list[tuple[str, int]],
    lengths: list[tuple[int, int]],
    grouped_first: bool,
    dtype: torch.dtype,
    slab_dtype: torch.dtype,
) -> None:
    model = Siblings(dtype)
    bank = AdapterBank(model, num_slots=4, max_rank=8, dtype=slab_dtype)
    group = LinearGroup(layers_of(model)) if grouped_first else None
    for slot, (names, rank) in enumerate(adapters):
        bank.load(slot, random_adapter(slot, names, rank))
    group = group or LinearGroup(layers_of(model))
    routing = Routing.from_lengths(sorted(dict(lengths).items()))
    x = torch.randn(routing.num_rows, 48).to(dtype)
    with torch.inference_mode(), bank.routed(routing):
        ours, expected = group(x), torch.cat([layer(x) for layer in layers_of(model)], dim=1)
        assert torch.equal(group(x[None]), ours[None])
    assert (group.in_features, group.out_sizes, group.out_features) == (48, (32, 16, 16), 64)
    tolerance = {4: 2e-6, 2: 2e-2}[min(dtype.itemsize, 4)] * max(expected.abs().max().item(), 1)
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=0)


def test_a_group_follows_loads_and_clears() -> None:
    model = Siblings()
    bank = AdapterBank(model, num_slots=2, max_rank=8)
    group = LinearGroup(layers_of(model))
    x = torch.randn(3, 48)

    def run() -> torch.Tensor:
        with torch.inference_mode(), bank.routed(Routing.from_slots([0, 1, 1])):
            return group(x)

    bare = run()
    bank.load(0, random_adapter(0, "qkv", 8))
    both = run()
    assert not torch.equal(both[0], bare[0])
    assert torch.equal(both[1:], bare[1:])
    bank.load(0, random_adapter(1, "k", 2))
    assert torch.equal(run()[0, :32], bare[0, :32]), "the new adapter leaves q alone"
    assert not torch.equal(run()[0, 32:48], both[0, 32:48])
    bank.clear(0)
    assert torch.equal(run(), bare)


def test_a_group_gives_back_the_dense_weights_that_nobody_else_holds() -> None:
    model = Siblings()
    tied = model.q.weight
    bank = AdapterBank(model, num_slots=1, max_rank=8)
    x = torch.randn(2, 48)
    with torch.inference_mode(), bank.routed(Routing.from_slots([-1, 0])):
        expected = LinearGroup(layers_of(model))(x)
        group = LinearGroup(layers_of(model), drop_weights=True)
        assert torch.equal(group(x), expected)
        with pytest.raises(RuntimeError, match="call its group"):
            model.q(x)
    assert tied.shape == (32, 48)
    assert sum(parameter.numel() for parameter in model.parameters()) == 0
    bank.load(0, random_adapter(0, "q", 8))
    assert bank.layers["q"].weights[0].a.device == tied.device


def test_a_group_of_eight_bits_stays_close(tmp_path: Path) -> None:
    model = Siblings()
    bank = AdapterBank(model, num_slots=1, max_rank=8)
    bank.load(0, random_adapter(0, "qkv", 8))
    x = torch.randn(40, 48)
    with torch.inference_mode(), bank.routed(Routing.from_slots([0] * 40)):
        exact, rounded = LinearGroup(layers_of(model))(x), LinearGroup(layers_of(model), bits=8)(x)
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("bits", [None, 8])
def test_a_group_warms_up_without_a_routing_and_keeps_its_table(bits: int | None) -> None:
    model = Siblings()
    bank = AdapterBank(model, num_slots=1, max_rank=8)
    bank.load(0, random_adapter(0, "qkv", 8))
    group = LinearGroup(layers_of(model), bits=bits)
    x = torch.randn(2, 48)
    with torch.inference_mode(), bank.routed(Routing.from_slots([0, 0])):
        expected = group(x)
    group.warm_up(torch.float32, [1, 64])
    with torch.inference_mode(), bank.routed(Routing.from_slots([0, 0])):
        assert torch.equal(group(x), expected)


def test_a_group_checks_the_routing() -> None:
    model = Siblings()
    bank = AdapterBank(model, num_slots=1, max_rank=8)
    group = LinearGroup(layers_of(model))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="outside"):
        group(torch.randn(2, 48))
    bank.load(0, random_adapter(0, "q", 8))
    with torch.inference_mode(), bank.routed(Routing.from_slots([0])), pytest.raises(RuntimeError, match="2 rows"):
        group(torch.randn(2, 48))


def test_staging_beside_running_batches_changes_nothing_until_it_is_committed() -> None:
    model = Siblings()
    bank = AdapterBank(model, num_slots=3, max_rank=8)
    group = LinearGroup(layers_of(model))
    bank.load(0, random_adapter(0, "qkv", 8))
    x = torch.randn(4, 48)
    routing = Routing.from_slots([-1, 0, 0, 0])
    staged, stop = {}, threading.Event()

    def keep_staging() -> None:
        for seed in range(10_000):
            for slot in (1, 2):
                staged[slot] = bank.stage(slot, random_adapter(slot, "qkv"[: 1 + seed % 3], 1 + seed % 8))
            if stop.is_set():
                return

    with torch.inference_mode(), bank.routed(routing):
        expected = group(x)
        thread = threading.Thread(target=keep_staging)
        thread.start()
        for _ in range(200):
            assert torch.equal(group(x), expected)
        stop.set()
        thread.join()
        assert torch.equal(group(x), expected)
    for slot in (1, 2):
        bank.commit(slot, staged[slot])
    with torch.inference_mode(), bank.routed(Routing.from_slots([1, 2, 0, -1])):
        ours, expected = group(x), torch.cat([layer(x) for layer in layers_of(model)], dim=1)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_slots_take_no_memory_before_they_are_filled() -> None:
    import psutil

    model = torch.nn.Sequential(torch.nn.Linear(1024, 1024, bias=False)).requires_grad_(False)
    num_bytes = slot_bytes(model, max_rank=128, dtype=torch.float32)
    assert num_bytes == 128 * 2048 * 4
    before = psutil.Process().memory_info().rss
    bank = AdapterBank(model, num_slots=256, max_rank=128)
    a = torch.randn(4, 1024)
    bank.load(7, AdapterWeights({"0": LoraWeights(a, a.t(), 1.0)}, where="test"))
    assert psutil.Process().memory_info().rss - before < 0.1 * bank.num_slots * num_bytes
