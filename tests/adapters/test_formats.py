"""Whatever PEFT can write of LoRA answers as PEFT computes it: ranks, patterns, targets and scalings of every kind."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from atoll.adapters.bank import AdapterBank
from atoll.adapters.peft_files import CONFIG_NAME, WEIGHTS_NAME
from atoll.adapters.peft_io import read_adapter
from atoll.adapters.routing import Routing
from atoll.model.attention import PackedContext, attending
from support.adapters import random_peft_model, save_random_adapter
from support.configs import linear_names, random_config
from support.packing import spans_between
from support.tiny import make_model

NUM_MIXED = 3
IDS = list(range(7, 27))
PLAIN = make_model()


def mixed_logits(folders: list[Path], *, max_rank: int) -> torch.Tensor:
    """Logits [n, tokens, vocab] of the same tokens through each adapter, side by side in one batch."""
    model = make_model()
    model.set_attn_implementation("atoll")
    bank = AdapterBank(model, num_slots=len(folders), max_rank=max_rank)
    for slot, folder in enumerate(folders):
        bank.load(slot, read_adapter(folder, check=bank.check))
    n = len(folders)
    context = PackedContext(spans_between(range(0, (n + 1) * len(IDS), len(IDS))))
    ids, positions = torch.tensor([IDS * n]), torch.arange(len(IDS)).repeat(n)[None]
    with torch.inference_mode(), attending(context), bank.routed(Routing.from_lengths((i, len(IDS)) for i in range(n))):
        logits: torch.Tensor = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    return logits.view(n, len(IDS), -1)


def peft_logits(peft_model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = peft_model(input_ids=torch.tensor([IDS])).logits[0]
    return logits


@pytest.mark.parametrize("seed", range(0, 30, NUM_MIXED))
def test_random_configs_answer_as_peft_computes_them(tmp_path: Path, seed: int) -> None:
    names = linear_names(PLAIN)
    folders, expected = [], []
    for number in range(seed, seed + NUM_MIXED):
        peft_model = random_peft_model(PLAIN, seed=number, **random_config(random.Random(number), names))
        peft_model.save_pretrained(tmp_path / str(number))
        folders.append(tmp_path / str(number))
        expected.append(peft_logits(peft_model))
    actual = mixed_logits(folders, max_rank=128)
    torch.testing.assert_close(actual, torch.stack(expected), atol=2e-4, rtol=1e-4)
    # The test would see an adapter that was left out.
    bare = peft_logits(PLAIN)
    assert all((one - bare).abs().max() > 0.01 for one in expected)


def test_ranks_from_4_to_128_in_one_batch(tmp_path: Path) -> None:
    folders, expected = [], []
    for rank in (4, 128, 17, 64):
        peft_model = random_peft_model(PLAIN, seed=rank, r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        peft_model.save_pretrained(tmp_path / str(rank))
        folders.append(tmp_path / str(rank))
        expected.append(peft_logits(peft_model))
    torch.testing.assert_close(mixed_logits(folders, max_rank=128), torch.stack(expected), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_without_a_loss(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = save_random_adapter(tmp_path, PLAIN)
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(folder / WEIGHTS_NAME).items()}
    save_file(tensors, folder / WEIGHTS_NAME)
    for name, lora in read_adapter(folder).modules.items():
        assert torch.equal(lora.a, tensors[f"base_model.model.{name}.lora_A.weight"])
        assert torch.equal(lora.b, tensors[f"base_model.model.{name}.lora_B.weight"])


def test_patterns_of_ranks_for_every_layer_are_read_at_once(tmp_path: Path) -> None:
    """Some methods write one pattern for each layer: the first that matches counts, as PEFT has it."""
    names = linear_names(PLAIN)
    ranks = {name: 1 + index % 5 for index, name in enumerate(names)}
    folder = save_random_adapter(tmp_path, PLAIN, rank_pattern=ranks, alpha_pattern={"q_proj": 3, ".*": 5})
    adapter = read_adapter(folder)
    assert {name: lora.a.shape[0] for name, lora in adapter.modules.items()} == ranks
    patterns = json.loads((folder / CONFIG_NAME).read_text())["alpha_pattern"]
    first = next(iter(patterns.values()))
    name = "model.layers.0.self_attn.q_proj"
    assert adapter.modules[name].scaling == pytest.approx(first / ranks[name])
