"""Random PEFT adapters, made and computed by PEFT itself: the reference for everything that reads them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


def save_random_adapter(folder: Path, model: nn.Module, *, seed: int = 0, scale: float = 0.2, **config: Any) -> Path:
    """Let PEFT write an adapter with random A and B (B is zero in a fresh one) for a copy of `model`."""
    torch.manual_seed(seed)
    fields: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    } | config
    peft_model = get_peft_model(_copy(model), LoraConfig(**fields))
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, scale)
    peft_model.save_pretrained(folder)
    return folder


def random_peft_model(model: nn.Module, *, seed: int, update: float = 0.12, **config: Any) -> Any:
    """A copy of `model` under a random adapter of PEFT's; biases and whatever else the adapter trains are changed too.

    update: the standard deviation of each module's whole update (scaling * B A), about that of the tiny bases' own
    weights, so that every adapter changes the answers, whatever its rank and its scaling.
    """
    peft_model: Any = get_peft_model(_copy(model), LoraConfig(task_type="CAUSAL_LM", **config)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * parameter.abs().clamp(min=0.3) / 3)
        for module in peft_model.modules():
            if isinstance(module, LoraLayer) and "default" in module.lora_A:
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                a.normal_(0, 1, generator=generator)
                b.normal_(0, update / (module.scaling["default"] * math.sqrt(a.shape[0])), generator=generator)
    return peft_model


def peft_logits(model: nn.Module, folder: Path | None, ids: list[int], *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits [tokens, vocab] that PEFT computes in `dtype` for one sequence; folder None: the bare base."""
    reference = _copy(model)
    if folder is not None:
        reference = PeftModel.from_pretrained(reference, folder)
    with torch.no_grad():
        logits: Tensor = reference.eval().to(dtype)(input_ids=torch.tensor([ids])).logits[0]
    return logits


def _copy(model: nn.Module) -> Any:
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.eval()
