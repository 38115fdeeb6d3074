"""Adapters that PEFT wrote answer as PEFT computes them, alone and side by side in one batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.adapters.bank import AdapterBank
from atoll.adapters.peft_io import read_adapter, write_adapter
from atoll.adapters.routing import BASE_SLOT, Routing
from atoll.config.fleet import LoraConfig
from atoll.model.attention import PackedContext, attending
from support.adapters import peft_logits, save_random_adapter
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
    context = PackedContext(torch.tensor(starts, dtype=torch.int32))
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
        torch.testing.assert_close(logits, peft_logits(plain, folders[slot], ids), atol=TOLERANCE, rtol=1e-4)


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
    assert b_slab[1, :, 2:].abs().sum() == 0
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
