"""Norm and gate of a Llama block with gradients for their inputs, on the CPU: one pass each way, the inputs kept alone.

transformers' own take a dozen operations each, and keep their results in float32 for the backward pass. The weight of
the norm is frozen, as everything of a base model is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from atoll.kernels.cpu import fused as cpu
from atoll.kernels.reference import fused as reference


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `kernels.fused.rms_norm`, with a gradient for x. x: [tokens, n], weight: [n]. Returns [tokens, n]."""
    if not (_has_kernel(x) and x.dtype == weight.dtype and weight.is_contiguous()):
        return reference.rms_norm(x, weight, eps)
    out: Tensor = _RMSNorm.apply(x.contiguous(), weight, eps)  # type: ignore[no-untyped-call]
    return out


def gate_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, with gradients. gate, up: [tokens, n], of one dtype. Returns [tokens, n]."""
    if not _has_kernel(gate):
        return functional.silu(gate) * up
    out: Tensor = _GateMul.apply(gate.contiguous(), up.contiguous())  # type: ignore[no-untyped-call]
    return out


def _has_kernel(x: Tensor) -> bool:
    return x.is_cpu and x.dtype in cpu.KINDS


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return cpu.rms_norm(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return cpu.rms_norm_backward(x, weight, grads[0].contiguous(), ctx.eps), None, None


class _GateMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return cpu.gate_mul(gate, up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        return cpu.gate_mul_backward(gate, up, grads[0].contiguous())
