"""The optimiser of one adapter: AdamW over its own parameters, its own schedule and clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from atoll.adapters.bank import trainable_tensors
from atoll.config.fleet import TrainerConfig
from atoll.kernels.lora import LoraWeights


def learning_rate_at(
    step: int, total_steps: int, config: TrainerConfig, peak: float, steps_per_cycle: int | None = None
) -> float:
    """The rate of one step (counted from 0): a linear warm-up, then the configured decay towards 0.

    steps_per_cycle: after how many steps `cosine_with_restarts` begins anew; the whole schedule unless given. Source of
    the restarts: SGDR, arXiv 1608.03983.
    """
    warmup = math.ceil(config.warmup_fraction * total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    match config.learning_rate_scheduler:
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * progress))
        case "cosine_with_restarts":
            cycle = steps_per_cycle or max(1, total_steps)
            return peak * 0.5 * (1 + math.cos(math.pi * ((step - warmup) % cycle) / cycle))
        case "linear":
            return peak * (1 - progress)
        case "constant":
            return peak


class AdapterOptimizer:
    """torch's AdamW with the adapter's own rate and gradient norm. Its state can be flattened and restored exactly."""

    def __init__(
        self,
        weights: Mapping[str, LoraWeights],
        config: TrainerConfig,
        *,
        peak: float,
        total_steps: int,
        steps_per_cycle: int | None = None,
    ) -> None:
        self.parameters = trainable_tensors(weights)
        self._names = [f"{name}.{side}" for name in weights for side in "ab"]
        self._config = config
        self._peak = peak
        self._total_steps = total_steps
        self._steps_per_cycle = steps_per_cycle
        self._adamw = torch.optim.AdamW(self.parameters, lr=peak, weight_decay=config.weight_decay)

    def step(self, step: int) -> tuple[float, float]:
        """Clip, update and clear the gradients. Returns (gradient norm before clipping, learning rate)."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self._config.max_grad_norm)
        rate = learning_rate_at(step, self._total_steps, self._config, self._peak, self._steps_per_cycle)
        self._adamw.param_groups[0]["lr"] = rate
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        return float(norm), rate

    def state(self) -> dict[str, Tensor]:
        """All tensors that the next steps depend on: weights, moments, step counts, and gradients gathered so far."""
        tensors = {}
        for name, parameter in zip(self._names, self.parameters, strict=True):
            tensors[f"{name}.weight"] = parameter.detach()
            if parameter.grad is not None:
                tensors[f"{name}.grad"] = parameter.grad
            for key, value in self._adamw.state.get(parameter, {}).items():
                tensors[f"{name}.{key}"] = value
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        for name, parameter in zip(self._names, self.parameters, strict=True):
            parameter.copy_(tensors[f"{name}.weight"])
            grad = tensors.get(f"{name}.grad")
            parameter.grad = None if grad is None else _laid_out_as(parameter, grad)
            if (step := tensors.get(f"{name}.step")) is not None:
                moments = {key: _laid_out_as(parameter, tensors[f"{name}.{key}"]) for key in ("exp_avg", "exp_avg_sq")}
                self._adamw.state[parameter] = {"step": step, **moments}


def _laid_out_as(parameter: Tensor, values: Tensor) -> Tensor:
    """A copy with the parameter's strides: sums such as the norm of a gradient go through memory in order, and b is a
    transposed view, so the same values in rows would add up to other last bits."""
    return torch.empty_like(parameter).copy_(values)
