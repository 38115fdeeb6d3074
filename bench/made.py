"""Adapters made fast: random, not zero, each with bytes of its own, written as PEFT writes them."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from atoll.adapters.peft_files import CONFIG_NAME, WEIGHTS_NAME, adapter_digest
from atoll.adapters.peft_io import PREFIX
from atoll.adapters.store import StoredAdapter
from atoll.model.source import resolve_base

Shapes = dict[str, tuple[int, int]]
"""Linear layers by name: (in_features, out_features)."""

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
# Products then shift SmolLM2's outputs by some per cent of their size: answers differ, and nothing overflows.
STD = 0.02
# Distance in elements between the starts of two adapters in the one random array that all are cut from.
STRIDE = 61


def base_config(spec: str) -> PreTrainedConfig:
    """The base model's configuration, without its weights."""
    return AutoConfig.from_pretrained(resolve_base(spec).folder, local_files_only=True)


def linear_shapes(config: PreTrainedConfig) -> Shapes:
    """Every linear layer of the model except its head: what "all-linear" adapts."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def only(shapes: Shapes, targets: Sequence[str]) -> Shapes:
    """The layers whose last name is among `targets`."""
    return {name: shape for name, shape in shapes.items() if name.rpartition(".")[2] in targets}


def num_lora_params(shapes: Shapes, rank: int) -> int:
    return rank * sum(map(sum, shapes.values()))


def matrix_params(config: PreTrainedConfig) -> int:
    """Parameters that every token is multiplied with: all linear layers and the head."""
    head: int = config.hidden_size * config.vocab_size
    return head + sum(num_in * num_out for num_in, num_out in linear_shapes(config).values())


def make_adapters(
    folder: Path,
    shapes: Shapes,
    count: int,
    *,
    rank: int,
    dtype: torch.dtype = torch.float32,
    base: str = "",
    start: int = 0,
) -> list[StoredAdapter]:
    """Write `count` adapters below `folder`, numbered from `start`, as fast as the disk takes them.

    All are cut from one random array, each from a place of its own, so no two have a tensor in common.
    """
    layout, header = _header(shapes, rank, dtype)
    size = sum(layout)
    generator = torch.Generator().manual_seed(rank)
    values = torch.empty(size + STRIDE * (start + count)).normal_(0, STD, generator=generator).to(dtype)
    content = values.view(torch.uint8).numpy()
    width = values.element_size()
    config = json.dumps(_config(shapes, rank, base), indent=2, sort_keys=True)
    made = []
    for index in range(start, start + count):
        target = folder / f"a{index:05}"
        target.mkdir(parents=True, exist_ok=True)
        (target / CONFIG_NAME).write_text(config, encoding="utf-8")
        first = index * STRIDE * width
        with (target / WEIGHTS_NAME).open("wb") as file:
            file.write(header)
            file.write(content[first : first + size * width].data)
        made.append(StoredAdapter(target.name, 0, adapter_digest(target), target, None))
    return made


def forget_pages(adapters: Sequence[StoredAdapter]) -> None:
    """Drop the files from the page cache where the system can, so that the next reading of each comes from the disk."""
    if not hasattr(os, "posix_fadvise"):
        return
    for adapter in adapters:
        with (adapter.folder / WEIGHTS_NAME).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _header(shapes: Shapes, rank: int, dtype: torch.dtype) -> tuple[list[int], bytes]:
    """The elements of each tensor, and the head of a safetensors file that holds them one after another."""
    width = dtype.itemsize
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    counts = []
    offset = 0
    for name, (num_in, num_out) in shapes.items():
        for side, shape in (("A", [rank, num_in]), ("B", [num_out, rank])):
            count = shape[0] * shape[1]
            entries[f"{PREFIX}{name}.lora_{side}.weight"] = {
                "dtype": _NAMES[dtype],
                "shape": shape,
                "data_offsets": [offset, offset + count * width],
            }
            counts.append(count)
            offset += count * width
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return counts, struct.pack("<Q", len(text)) + text


def _config(shapes: Shapes, rank: int, base: str) -> dict[str, object]:
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in shapes}),
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
    }
