"""A damaged, foreign or unsupported adapter is refused by name, and never half-used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from atoll.adapters.bank import AdapterBank
from atoll.adapters.peft_files import CONFIG_NAME, WEIGHTS_NAME
from atoll.adapters.peft_io import read_adapter
from atoll.errors import AdapterInvalid
from support.adapters import save_random_adapter
from support.tiny import make_model

MODEL = make_model()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_random_adapter(tmp_path / "adapter", MODEL)


def set_field(folder: Path, key: str, value: Any) -> None:
    path = folder / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("modules_to_save", ["lm_head"]),
        ("bias", "all"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("trainable_token_indices", [1, 2]),
        ("layer_replication", [[0, 2]]),
        ("use_qalora", True),
        ("alora_invocation_tokens", [5]),
        ("a_field_of_the_future", "on"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("peft_type", "IA3"),
    ],
)
def test_a_field_that_changes_the_answers_is_refused_by_name(folder: Path, key: str, value: Any) -> None:
    set_field(folder, key, value)
    with pytest.raises(AdapterInvalid, match=key):
        read_adapter(folder)


@pytest.mark.parametrize("value", [0, -1, "eight", True, None, 1e9, float("nan")])
@pytest.mark.parametrize("key", ["r", "lora_alpha"])
def test_numbers_out_of_range_are_refused(folder: Path, key: str, value: Any) -> None:
    set_field(folder, key, value)
    with pytest.raises(AdapterInvalid, match=key):
        read_adapter(folder)


@pytest.mark.parametrize("pattern", ["(a+)+$", ".*.*.*.*.*x", "(" * 40, "a" * 300])
def test_patterns_that_could_stall_the_loader_are_refused(folder: Path, pattern: str) -> None:
    set_field(folder, "alpha_pattern", {pattern: 4})
    with pytest.raises(AdapterInvalid, match=r"pattern|regular expression"):
        read_adapter(folder)


def edit(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_NAME)
        change(tensors)
        save_file(tensors, folder / WEIGHTS_NAME)

    return apply


def first(tensors: dict[str, torch.Tensor], side: str) -> str:
    return next(key for key in tensors if f"lora_{side}" in key)


def flip(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS_NAME).read_bytes())
    data[:8] = b"\xff" * 8
    (folder / WEIGHTS_NAME).write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / CONFIG_NAME).unlink(), "not a PEFT adapter"),
    "config not JSON": (lambda f: (f / CONFIG_NAME).write_text("{"), "not valid JSON"),
    "config a list": (lambda f: (f / CONFIG_NAME).write_text("[]"), "not a JSON object"),
    "config deep": (lambda f: (f / CONFIG_NAME).write_text("[" * 100_000), "not valid JSON"),
    "config huge": (lambda f: (f / CONFIG_NAME).write_text(" " * (2 << 20)), "larger than"),
    "no weights": (lambda f: (f / WEIGHTS_NAME).unlink(), "no adapter_model.safetensors"),
    "empty weights": (lambda f: (f / WEIGHTS_NAME).write_bytes(b""), "damaged"),
    "truncated": (lambda f: (f / WEIGHTS_NAME).write_bytes((f / WEIGHTS_NAME).read_bytes()[:-50]), "damaged"),
    "bad header": (flip, "damaged"),
    "missing B": (edit(lambda t: t.pop(first(t, "B"))), "lora_B is missing"),
    "missing A": (edit(lambda t: t.pop(first(t, "A"))), "lora_A is missing"),
    "NaN": (edit(lambda t: t[first(t, "A")].view(-1)[:1].fill_(float("nan"))), "NaN"),
    "infinity": (edit(lambda t: t[first(t, "B")].view(-1)[:1].fill_(float("inf"))), "NaN or infinity"),
    "integers": (edit(lambda t: t.update({first(t, "A"): t[first(t, "A")].int()})), "dtype"),
    "other rank": (edit(lambda t: t.update({first(t, "A"): t[first(t, "A")][:2].clone()})), "make no product"),
    "foreign tensor": (edit(lambda t: t.update({"lm_head.weight": torch.zeros(1)})), "lm_head.weight"),
    "nothing inside": (edit(lambda t: t.clear()), "no weights"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_told(folder: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(AdapterInvalid, match=message) as caught:
        read_adapter(folder)
    assert str(folder) in (caught.value.where or "")


def test_a_pickled_adapter_is_never_opened(folder: Path) -> None:
    (folder / WEIGHTS_NAME).rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterInvalid) as caught:
        read_adapter(folder)
    assert "could run code" in str(caught.value)


def test_an_adapter_of_another_base_is_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    bank = AdapterBank(make_model(), num_slots=1, max_rank=8)
    bank.load(0, read_adapter(folder))
    foreign = save_random_adapter(tmp_path / "foreign", make_model(hidden_size=32), target_modules=["q_proj"])
    deeper = save_random_adapter(tmp_path / "deeper", make_model(num_hidden_layers=3))
    wide = save_random_adapter(tmp_path / "wide", MODEL, r=16)
    layer = bank.layers["model.layers.0.self_attn.q_proj"]
    before = layer.weights[0].a.clone()
    for path, message in ((foreign, "do not fit"), (deeper, "no linear layer"), (wide, "largest rank")):
        with pytest.raises(AdapterInvalid, match=message):
            bank.load(0, read_adapter(path))
        assert torch.equal(layer.weights[0].a, before)
