"""What lies between the products of a Llama block, each in one pass where there is a kernel for it; inference only."""

from __future__ import annotations

from torch import Tensor

from atoll.kernels.cpu import fused as cpu
from atoll.kernels.reference import fused as reference


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x ** 2) + eps), rounded where transformers' LlamaRMSNorm does.

    x: [tokens, n]. weight: [n]. Returns [tokens, n].
    """
    if _has_kernel(x) and weight.dtype == x.dtype and weight.shape[0] == x.shape[1] and weight.is_contiguous():
        return cpu.rms_norm(x, weight, eps)
    return reference.rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + y, and its `rms_norm`. x, y: [tokens, n]. weight: [n]. Returns two of [tokens, n]."""
    is_like = weight.dtype == y.dtype == x.dtype and weight.shape[0] == x.shape[1]
    if _has_kernel(x) and y.is_contiguous() and is_like and weight.is_contiguous():
        return cpu.add_rms_norm(x, y, weight, eps)
    total = x + y
    return total, reference.rms_norm(total, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up. gate_up: [tokens, 2 * n], gate first. Returns [tokens, n]."""
    return cpu.silu_mul(gate_up) if _has_kernel(gate_up) else reference.silu_mul(gate_up)


def rope_store(
    qkv: Tensor, cos: Tensor, sin: Tensor, kv_index: Tensor, keys: Tensor, values: Tensor, num_heads: int
) -> None:
    """Rotate queries and keys inside of `qkv`, in place, and keep keys and values in the cache.

    qkv: [tokens, (num_heads + 2 * num_kv_heads) * dim], contiguous, a row being all queries, all keys, all values. cos,
    sin: [tokens, dim] or [1, tokens, dim]. kv_index: [tokens] int64, flat positions of the cache, none twice. keys,
    values: one layer of the cache, [positions, num_kv_heads, dim]. Source: transformers' apply_rotary_pos_emb.
    """
    # The kernel trusts what it is given.
    sizes_match = cos.numel() == sin.numel() == qkv.shape[0] * keys.shape[2] and keys.shape == values.shape
    dtypes_match = qkv.dtype == cos.dtype == sin.dtype == keys.dtype == values.dtype
    are_contiguous = all(x.is_contiguous() for x in (cos, sin, kv_index, keys, values))
    if _has_kernel(qkv) and sizes_match and dtypes_match and are_contiguous and keys.shape[2] % 2 == 0:
        cpu.rope_store(qkv, cos, sin, kv_index, keys, values, num_heads)
    else:
        reference.rope_store(qkv, cos, sin, kv_index, keys, values, num_heads)


def _has_kernel(x: Tensor) -> bool:
    return x.is_cpu and x.dtype in cpu.KINDS and x.is_contiguous()
