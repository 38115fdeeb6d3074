"""Adapters on disk in PEFT's own format: `adapter_config.json` and `adapter_model.safetensors`, and nothing unsafe.

Whatever changes what an adapter computes is either implemented or refused by name; nothing is ignored in silence.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from atoll.adapters.contract import CONTRACT_NAME
from atoll.adapters.peft_config import config_rank, config_scaling, is_selected, parse_config
from atoll.adapters.peft_files import CONFIG_NAME, MAX_BYTES, WEIGHTS_NAME, digest_of, read_small
from atoll.adapters.selection import ends_with
from atoll.adapters.tensor_file import Body, TensorInfo, open_tensors
from atoll.config.fleet import LoraConfig
from atoll.errors import AdapterInvalid
from atoll.files import write_atomic
from atoll.kernels.lora import LoraWeights

PREFIX = "base_model.model."
MAX_MATCHING_S = 5.0
"""Of a processor's time for all modules of an adapter; its patterns hold the interpreter while they match."""
# A name is held against patterns, so it may not be of any length.
_KEY = re.compile(rf"{re.escape(PREFIX)}(.{{1,128}})\.lora_([AB])\.weight")


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter in host memory: its matrices by module name, where it came from, and the bytes that it takes."""

    modules: dict[str, LoraWeights]
    where: str
    num_bytes: int = 0

    @property
    def max_rank(self) -> int:
        return max(lora.a.shape[0] for lora in self.modules.values())


def read_adapter(
    folder: Path,
    *,
    verify: Callable[[str], None] | None = None,
    check: Callable[[AdapterWeights], None] = lambda _: None,
    allocate: Callable[[int], Tensor] | None = None,
) -> AdapterWeights:
    """Read and check a PEFT folder. Raises AdapterInvalid that names the field, the tensor or the file at fault.

    verify: called with the digest of the bytes that were read, to refuse others than were asked for. check: called
    with shapes alone (tensors on "meta") before the weights are read, so that an adapter that does not fit takes no
    memory. allocate: gives uint8 memory for so many bytes.
    """
    where = str(folder)
    config_bytes = read_small(folder / CONFIG_NAME)
    if config_bytes is None:
        raise AdapterInvalid(f"no {CONFIG_NAME}", where=where, why="this is not a PEFT adapter's folder")
    config = parse_config(config_bytes, str(folder / CONFIG_NAME))
    _check_is_there(folder)
    with open_tensors(folder / WEIGHTS_NAME, MAX_BYTES[WEIGHTS_NAME]) as file:
        pairs = _paired(file.tensors, where)
        scalings = _check_modules(pairs, config, where)
        check(_adapter(pairs, scalings, lambda info: torch.empty(info.shape, device="meta"), where, file.body_bytes))
        buffer = (allocate or _host_memory)(-file.body_bytes % 4 + file.body_bytes)
        file.read_body(buffer)
        if verify is not None:
            contents = {CONFIG_NAME: config_bytes, CONTRACT_NAME: read_small(folder / CONTRACT_NAME)}
            parts = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items() if data is not None}
            verify(digest_of(parts | {WEIGHTS_NAME: file.sha256(buffer)}))
    body = Body(buffer)
    if (bad := body.find_not_finite(file.tensors)) is not None:
        raise AdapterInvalid(f"{bad} holds NaN or infinity", where=where, why="the training run diverged")
    return _adapter(pairs, scalings, body.matrix, where, buffer.numel())


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


_Pairs = dict[str, tuple[TensorInfo, TensorInfo]]


def _host_memory(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)


def _check_is_there(folder: Path) -> None:
    if (folder / WEIGHTS_NAME).is_file():
        return
    pickled = (folder / "adapter_model.bin").exists()
    raise AdapterInvalid(
        f"no {WEIGHTS_NAME}",
        where=str(folder),
        why="only a pickled adapter_model.bin is there, which could run code" if pickled else None,
        mend="save it with PEFT's save_pretrained(..., safe_serialization=True)" if pickled else None,
    )


def _paired(tensors: Mapping[str, TensorInfo], where: str) -> _Pairs:
    """The A and B of each module, in the order of the modules' names."""
    halves: dict[str, dict[str, TensorInfo]] = {"A": {}, "B": {}}
    for key, info in tensors.items():
        found = _KEY.fullmatch(key)
        if found is None:
            raise AdapterInvalid(
                f"the tensor {key[:120]!r} is not supported",
                where=where,
                why="only lora_A and lora_B of linear layers are; ignoring it would change the answers in silence",
            )
        halves[found[2]][found[1]] = info
    names = halves["A"].keys() | halves["B"].keys()
    if not names:
        raise AdapterInvalid("the adapter holds no weights", where=where)
    for side, half in halves.items():
        if missing := names - half.keys():
            raise AdapterInvalid(f"{min(missing)}: lora_{side} is missing", where=where)
    return {name: (halves["A"][name], halves["B"][name]) for name in sorted(names)}


def _check_modules(pairs: _Pairs, config: dict[str, Any], where: str) -> dict[str, float]:
    """The scaling of each module. Raises AdapterInvalid, also where the config's patterns take too long to match."""
    scalings = {}
    started_s = time.thread_time()
    for name, pair in pairs.items():
        scalings[name] = _check_module(name, *pair, config, where)
        if time.thread_time() - started_s > MAX_MATCHING_S:
            why = f"{len(scalings)} of {len(pairs)} modules took more than {MAX_MATCHING_S:.0f} s"
            raise AdapterInvalid("the patterns of the config are too complex", where=where, why=why)
    return scalings


def _check_module(name: str, a: TensorInfo, b: TensorInfo, config: dict[str, Any], where: str) -> float:
    """Hold a module's shapes against the config and return its scaling."""
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise AdapterInvalid(f"{name}: shapes {list(a.shape)} and {list(b.shape)} make no product", where=where)
    rank = config_rank(config, name)
    if a.shape[0] != rank:
        raise AdapterInvalid(f"{name}: the weights have rank {a.shape[0]}, the config says {rank}", where=where)
    if not is_selected(config, name):
        raise AdapterInvalid(f"{name} has weights, but target_modules does not select it", where=where)
    return config_scaling(config, name, rank)


def _adapter(
    pairs: _Pairs, scalings: Mapping[str, float], tensor: Callable[[TensorInfo], Tensor], where: str, num_bytes: int
) -> AdapterWeights:
    modules = {name: LoraWeights(tensor(a), tensor(b), scalings[name]) for name, (a, b) in pairs.items()}
    return AdapterWeights(modules, where, num_bytes)
