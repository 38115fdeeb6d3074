"""Norm, activation and rotation in PyTorch, operation by operation as transformers' Llama computes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `kernels.fused.rms_norm` says."""
    wide = x.float()
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normal.to(x.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    """As `kernels.fused.silu_mul` says."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rope_store(
    qkv: Tensor, cos: Tensor, sin: Tensor, kv_index: Tensor, keys: Tensor, values: Tensor, num_heads: int
) -> None:
    """As `kernels.fused.rope_store` says."""
    num_kv_heads = keys.shape[1]
    heads = qkv.view(qkv.shape[0], num_heads + 2 * num_kv_heads, -1)
    rotated = heads[:, : num_heads + num_kv_heads]
    half = rotated.shape[-1] // 2
    half_turned = torch.cat((-rotated[..., half:], rotated[..., :half]), dim=-1)
    cos, sin = (x.view(qkv.shape[0], 1, -1) for x in (cos, sin))
    rotated.copy_(rotated * cos + half_turned * sin)
    keys.index_copy_(0, kv_index, heads[:, num_heads : num_heads + num_kv_heads])
    values.index_copy_(0, kv_index, heads[:, num_heads + num_kv_heads :])
