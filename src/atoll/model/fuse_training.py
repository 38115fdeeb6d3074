"""Before training: norms and gated MLPs that compute as Llama's do get kernels with a backward pass.

As in `model.fuse`, a block is exchanged only where its code in transformers is Llama's, word for word. Linear layers
stay where they are and under their names, so that a bank of adapters keeps its hold on them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from atoll.kernels.trained import gate_mul, rms_norm
from atoll.model.fuse import children, has_silu, same_code


class TrainedRMSNorm(nn.Module):
    """Llama's RMSNorm with a frozen weight."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps: float = norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., hidden]. Returns the same shape."""
        return rms_norm(x.reshape(-1, x.shape[-1]), self.weight, self.eps).view(x.shape)


class TrainedMLP(nn.Module):
    """Llama's MLP with SiLU."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """x: [1, tokens, hidden]. Returns the same shape."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        out: Tensor = self.down_proj(gate_mul(gate.flatten(0, -2), up.flatten(0, -2)).view(gate.shape))
        return out


def fuse_for_training(model: PreTrainedModel) -> None:
    """Exchange what can be, in place and for good. The model computes what it did, up to rounding."""
    for parent, name, module in list(children(model)):
        if same_code(type(module), LlamaRMSNorm) and not module.weight.requires_grad:
            setattr(parent, name, TrainedRMSNorm(module))
        elif same_code(type(module), LlamaMLP) and has_silu(module):
            setattr(parent, name, TrainedMLP(module))
