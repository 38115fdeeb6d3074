"""What a run will take, before it is run: steps, tokens, memory, time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atoll.adapters.selection import select_modules
from atoll.config.fleet import FleetConfig, FleetMember, LoraConfig, TrainerConfig
from atoll.tasks.audit import TaskAudit

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

# Training computes activations forward and backward but no gradients of the base's weights: 2 + 2 FLOP a parameter.
_TRAIN_FLOP_PER_PARAM = 4
_FORWARD_FLOP_PER_PARAM = 2
# The share of a large product's speed that whole training passes reached with SmolLM2-135M in float32 on two cores.
_EFFICIENCY = 0.5
# Weights, gradients, both moments of AdamW and the best weights so far, each in float32.
_BYTES_PER_ADAPTER_PARAM = 5 * 4
# What is kept for the backward pass beside the inputs and outputs of linear layers (norms, rotations, attention) makes
# half as much again: SmolLM2-135M in float32 took 4.2 GB of activations and logits for 2,026 tokens.
_ACTIVATIONS = 1.5
# Python and its libraries.
_PROCESS_BYTES = 4e8
_PROBE_SIZE = 1024
_NUM_TRIES = 5


@dataclass(frozen=True)
class BaseShape:
    """What of a base model decides its costs. linears: layer name -> (in_features, out_features), without the head."""

    num_params: int
    linears: dict[str, tuple[int, int]]
    num_layers: int
    vocab_size: int


@dataclass(frozen=True)
class MemberEstimate:
    """What one adapter will take if nothing ends its training early."""

    name: str
    num_steps: int
    num_train_tokens: int
    num_validation_tokens: int
    num_params: int


@dataclass(frozen=True)
class FleetEstimate:
    """What the whole run will take at most; memory and time are rough."""

    members: tuple[MemberEstimate, ...]
    memory_bytes: int
    seconds: float


def base_shape(config: PreTrainedConfig) -> BaseShape:
    """The shape of a base model, from its configuration alone: no weights are made."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linears = {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    text = config.get_text_config()
    return BaseShape(model.num_parameters(), linears, text.num_hidden_layers, text.vocab_size)


def estimate_member(member: FleetMember, audit: TaskAudit, shape: BaseShape) -> MemberEstimate:
    """Steps and tokens of one adapter. Raises ConfigError if its target_modules name no layer."""
    trainer = member.trainer
    num_examples = next(split.num_used for split in audit.splits if split.split == "train")
    steps_per_epoch = math.ceil(num_examples / trainer.effective_batch_size)
    num_steps = min(trainer.epochs * steps_per_epoch, trainer.max_steps or math.inf)
    num_rounds = num_steps / trainer.evaluate_every(steps_per_epoch)
    return MemberEstimate(
        name=member.name,
        num_steps=int(num_steps),
        num_train_tokens=round(audit.tokens.num_tokens * num_steps / steps_per_epoch),
        num_validation_tokens=round(audit.num_validation_tokens * num_rounds),
        num_params=num_adapter_params(member.adapter, shape),
    )


def num_adapter_params(adapter: LoraConfig, shape: BaseShape) -> int:
    """The parameters of one adapter. Raises ConfigError if its target_modules name no layer."""
    names = select_modules(shape.linears, adapter.target_modules)
    return sum(adapter.r * sum(shape.linears[name]) for name in names)


def estimate_fleet(
    fleet: FleetConfig,
    members: Sequence[MemberEstimate],
    audits: Sequence[TaskAudit],
    shape: BaseShape,
    *,
    bytes_per_param: int,
    flop_per_second: float,
) -> FleetEstimate:
    """The whole run, its adapters together. flop_per_second: what `measure_speed` found."""
    # Checkpointing runs the forward pass a second time.
    again = _FORWARD_FLOP_PER_PARAM if fleet.trainer.gradient_checkpointing else 0
    num_train_tokens = sum(member.num_train_tokens for member in members)
    num_validation_tokens = sum(member.num_validation_tokens for member in members)
    flop = shape.num_params * (
        (_TRAIN_FLOP_PER_PARAM + again) * num_train_tokens + _FORWARD_FLOP_PER_PARAM * num_validation_tokens
    )
    memory = (
        _PROCESS_BYTES
        + _base_bytes(fleet, shape, bytes_per_param)
        + _BYTES_PER_ADAPTER_PARAM * sum(member.num_params for member in members)
        + _activation_bytes(fleet.trainer, audits, shape, bytes_per_param)
    )
    return FleetEstimate(tuple(members), round(memory), flop / (flop_per_second * _EFFICIENCY))


def _base_bytes(fleet: FleetConfig, shape: BaseShape, bytes_per_param: int) -> float:
    in_linears = sum(num_in * num_out for num_in, num_out in shape.linears.values())
    bytes_in_linears = fleet.quantization.bits / 8 if fleet.quantization else bytes_per_param
    return in_linears * bytes_in_linears + (shape.num_params - in_linears) * bytes_per_param


def _activation_bytes(
    trainer: TrainerConfig, audits: Sequence[TaskAudit], shape: BaseShape, bytes_per_param: int
) -> float:
    """What one pass keeps for its backward: activations of all layers, and the logits of the answers.

    Checkpointing keeps the inputs of each block, and the rest of one block at a time.
    """
    num_tokens = max(trainer.token_budget, *(audit.tokens.max_length for audit in audits))
    per_token = _ACTIVATIONS * bytes_per_param * sum(num_in + num_out for num_in, num_out in shape.linears.values())
    if trainer.gradient_checkpointing:
        per_token = per_token * 2 / shape.num_layers
    share_trained = max(audit.tokens.num_target_tokens / audit.tokens.num_tokens for audit in audits)
    # The logits, their softmax and its gradient.
    per_token += share_trained * 3 * 4 * shape.vocab_size
    return num_tokens * per_token


def measure_speed(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """FLOP per second of large products on this machine now: the best of several tries within about `seconds`."""
    import torch

    x = torch.randn(_PROBE_SIZE, _PROBE_SIZE, dtype=dtype, device=device)

    def products(number: int) -> float:
        started = time.perf_counter()
        for _ in range(number):
            y = x @ x
        y[0, 0].item()  # waits for a GPU
        return time.perf_counter() - started

    products(1)
    number = max(1, math.ceil(seconds / _NUM_TRIES / max(products(1), 1e-6)))
    return float(2 * _PROBE_SIZE**3 * number / min(products(number) for _ in range(_NUM_TRIES)))
