"""Adapters on disk in PEFT's own format: `adapter_config.json` and `adapter_model.safetensors`, and nothing unsafe.

Whatever changes what an adapter computes is either implemented or refused by name; nothing is ignored in silence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from atoll.adapters.selection import check_pattern, ends_with, pattern_value
from atoll.config.fleet import LoraConfig
from atoll.errors import AdapterInvalid
from atoll.files import write_atomic
from atoll.kernels.lora import LoraWeights

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 8 << 30
PREFIX = "base_model.model."

# Fields that say how the adapter was made or is described, not what it computes.
DESCRIPTIVE = frozenset(
    [
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "inference_mode",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
        "ensure_weight_tying",
    ]
)
IMPLEMENTED = frozenset(
    [
        "alpha_pattern",
        "bias",
        "exclude_modules",
        "fan_in_fan_out",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "use_rslora",
    ]
)
# These initialisations move part of the base weights into the adapter: without the changed base it computes nonsense.
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter in host memory: its matrices by module name, and where it came from."""

    modules: dict[str, LoraWeights]
    where: str

    @property
    def max_rank(self) -> int:
        return max(lora.a.shape[0] for lora in self.modules.values())


def read_adapter(folder: Path) -> AdapterWeights:
    """Read and check a PEFT folder. Raises AdapterInvalid that names the field, the tensor or the file at fault."""
    where = str(folder)
    config = read_config(folder)
    tensors = _read_tensors(folder / WEIGHTS_NAME, where)
    modules = {}
    for name in sorted({_module_name(key, where) for key in tensors}):
        pair = [tensors.get(f"{PREFIX}{name}.lora_{side}.weight") for side in "AB"]
        if pair[0] is None or pair[1] is None:
            raise AdapterInvalid(f"{name}: lora_{'A' if pair[0] is None else 'B'} is missing", where=where)
        modules[name] = _checked(name, pair[0], pair[1], config, where)
    if not modules:
        raise AdapterInvalid("the adapter holds no weights", where=where)
    return AdapterWeights(modules, where)


def read_config(folder: Path) -> dict[str, Any]:
    """Read `adapter_config.json` and refuse, by name, every field that is set and not implemented."""
    path = folder / CONFIG_NAME
    where = str(path)
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise AdapterInvalid(f"the file is larger than {MAX_CONFIG_BYTES} bytes", where=where)
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise AdapterInvalid(
            f"no {CONFIG_NAME}", where=str(folder), why="this is not a PEFT adapter's folder"
        ) from None
    except (ValueError, RecursionError) as error:
        raise AdapterInvalid(f"not valid JSON: {error}", where=where) from None
    if not isinstance(config, dict):
        raise AdapterInvalid("not a JSON object", where=where)
    _check_config(config, where)
    return config


def config_scaling(config: Mapping[str, Any], name: str, rank: int) -> float:
    """The factor of one module: alpha / rank, or alpha / sqrt(rank) with rsLoRA."""
    alpha = pattern_value(config.get("alpha_pattern") or {}, name, config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def write_adapter(
    folder: Path, weights: Mapping[str, LoraWeights], config: LoraConfig, *, base_model: str, all_layers: list[str]
) -> None:
    """Write an adapter as PEFT writes it, in float32. all_layers: every linear layer of the base model."""
    tensors = {}
    for name, lora in weights.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = lora.a.detach().float().cpu().contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = lora.b.detach().float().cpu().contiguous()
    fields = {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.dropout,
        "peft_type": "LORA",
        "r": config.r,
        "target_modules": _target_names(list(weights), all_layers),
        "task_type": "CAUSAL_LM",
        "use_rslora": config.use_rslora,
    }
    write_atomic(folder / WEIGHTS_NAME, save(tensors, metadata={"format": "pt"}))
    write_atomic(folder / CONFIG_NAME, json.dumps(fields, indent=2, sort_keys=True) + "\n")


def _target_names(selected: list[str], all_layers: list[str]) -> list[str]:
    """The short names (q_proj, ...) where they select the same layers, else the full ones."""
    short = sorted({name.rpartition(".")[2] for name in selected})
    if {name for name in all_layers if any(ends_with(name, target) for target in short)} == set(selected):
        return short
    return sorted(selected)


def _check_config(config: dict[str, Any], where: str) -> None:
    if config.get("peft_type") != "LORA":
        raise AdapterInvalid(f"peft_type {config.get('peft_type')!r} is not supported", where=where, mend="use LORA")
    for key in ("r", "lora_alpha"):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise AdapterInvalid(f"{key} must be a number above 0, not {value!r}", where=where)
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        raise AdapterInvalid(
            f"init_lora_weights {init!r} is not supported",
            where=where,
            why="such an adapter belongs to a changed base model",
            mend="convert it with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict) or not all(isinstance(v, int | float) and v > 0 for v in patterns.values()):
            raise AdapterInvalid(f"{key} must map patterns to numbers above 0", where=where)
        for pattern in patterns:
            check_pattern(pattern, where)
    if config.get("bias", "none") != "none":
        raise AdapterInvalid(f"bias {config['bias']!r} is not supported", where=where, mend="train with bias: none")
    for key, value in config.items():
        if key == "fan_in_fan_out" and value:
            raise AdapterInvalid("fan_in_fan_out is not supported", where=where)
        if key not in IMPLEMENTED and key not in DESCRIPTIVE and value not in (None, False, {}, [], ""):
            raise AdapterInvalid(
                f"the field {key!r} is not supported",
                where=where,
                why="ignoring it would change the answers in silence",
                mend=f"train the adapter without {key}",
            )


def _read_tensors(path: Path, where: str) -> dict[str, Tensor]:
    if not path.is_file():
        pickled = (path.parent / "adapter_model.bin").exists()
        raise AdapterInvalid(
            f"no {WEIGHTS_NAME}",
            where=where,
            why="only a pickled adapter_model.bin is there, which could run code" if pickled else None,
            mend="save it with PEFT's save_pretrained(..., safe_serialization=True)" if pickled else None,
        )
    if path.stat().st_size > MAX_WEIGHTS_BYTES:
        raise AdapterInvalid(f"the file is larger than {MAX_WEIGHTS_BYTES >> 30} GiB", where=str(path))
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise AdapterInvalid(
            f"the file is damaged: {error}", where=str(path), mend="copy or download it again"
        ) from None


def _module_name(key: str, where: str) -> str:
    for side in "AB":
        suffix = f".lora_{side}.weight"
        if key.startswith(PREFIX) and key.endswith(suffix):
            return key[len(PREFIX) : -len(suffix)]
    raise AdapterInvalid(
        f"the tensor {key[:120]!r} is not supported",
        where=where,
        why="only lora_A and lora_B of linear layers are; ignoring it would change the answers in silence",
    )


def _checked(name: str, a: Tensor, b: Tensor, config: dict[str, Any], where: str) -> LoraWeights:
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
        raise AdapterInvalid(f"{name}: shapes {list(a.shape)} and {list(b.shape)} make no product", where=where)
    for side, tensor in (("A", a), ("B", b)):
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise AdapterInvalid(f"{name}: lora_{side} has dtype {tensor.dtype}", where=where, mend="save as float32")
        if not torch.isfinite(tensor).all():
            raise AdapterInvalid(
                f"{name}: lora_{side} holds NaN or infinity", where=where, why="the training run diverged"
            )
    rank = int(pattern_value(config.get("rank_pattern") or {}, name, config["r"]))
    if a.shape[0] != rank:
        raise AdapterInvalid(f"{name}: the weights have rank {a.shape[0]}, the config says {rank}", where=where)
    if not _selected(name, config):
        raise AdapterInvalid(f"{name} has weights, but target_modules does not select it", where=where)
    return LoraWeights(a, b, config_scaling(config, name, rank))


def _selected(name: str, config: dict[str, Any]) -> bool:
    """Whether the config selects a module, as far as it does so by names.

    A regular expression is not run: PEFT writes weights for just the layers that it matched, so they tell the same.
    """
    excluded, targets = config.get("exclude_modules") or [], config.get("target_modules")
    if isinstance(excluded, list) and any(ends_with(name, str(target)) for target in excluded):
        return False
    return not isinstance(targets, list) or any(ends_with(name, str(target)) for target in targets)
