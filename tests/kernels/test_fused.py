"""Norm, activation and rotation against transformers' own code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from atoll.kernels.fused import add_rms_norm, rms_norm, rope_store, silu_mul
from atoll.kernels.reference import fused as reference
from atoll.kernels.warm_up import warm_up

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
KERNEL_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
TOKENS = pytest.mark.parametrize("tokens", [1, 3, 40])
# One unit in the last place of a number next to 1.
ULP = {torch.float32: 2e-7, torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float64: 1e-15}


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@DTYPES
@TOKENS
@pytest.mark.parametrize("width", [576, 2048, 30])
def test_rms_norm_equals_transformers(dtype: torch.dtype, tokens: int, width: int) -> None:
    norm = LlamaRMSNorm(width, eps=1e-5).to(dtype)
    norm.weight.data = randn(width, dtype=dtype, seed=1)
    x = randn(tokens, width, dtype=dtype) * torch.logspace(-4, 3, tokens)[:, None].to(dtype)
    expected = norm(x)
    torch.testing.assert_close(rms_norm(x, norm.weight, 1e-5), expected, rtol=4 * ULP[dtype], atol=0)
    if dtype is torch.bfloat16:  # rounded in the same places: but for a rare tie, to the bit
        assert (rms_norm(x, norm.weight, 1e-5) != expected).float().mean() < 0.01


@DTYPES
@TOKENS
@pytest.mark.parametrize("width", [1536, 37])
def test_silu_mul_equals_pytorch(dtype: torch.dtype, tokens: int, width: int) -> None:
    gate_up = 20 * randn(tokens, 2 * width, dtype=dtype)
    gate, up = gate_up[:, :width], gate_up[:, width:]
    torch.testing.assert_close(silu_mul(gate_up), functional.silu(gate) * up, rtol=4 * ULP[dtype], atol=1e-30)


@KERNEL_DTYPES
def test_silu_mul_at_the_ends(dtype: torch.dtype) -> None:
    gate = torch.tensor([-1e30, -200, -100, -1e-30, 0, 1e-30, 100, 1e30, float("nan"), float("inf")], dtype=dtype)
    expected = functional.silu(gate)
    torch.testing.assert_close(
        silu_mul(torch.stack([gate, torch.ones_like(gate)]).view(1, -1))[0], expected, equal_nan=True
    )


def transformers_rope(qkv: Tensor, cos: Tensor, sin: Tensor, num_heads: int, num_kv_heads: int) -> list[Tensor]:
    """q, k, v: [tokens, heads, dim]."""
    heads = qkv.view(len(qkv), num_heads + 2 * num_kv_heads, -1).clone().transpose(0, 1)[None]
    q, k, v = heads.split_with_sizes([num_heads, num_kv_heads, num_kv_heads], dim=1)
    q, k = apply_rotary_pos_emb(q, k, cos[None], sin[None])
    return [x[0].transpose(0, 1) for x in (q, k, v)]


@DTYPES
@TOKENS
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "dim"), [(9, 3, 64), (4, 4, 80), (2, 1, 128), (3, 1, 6), (2, 1, 5)]
)
def test_rope_store_equals_transformers_to_the_bit(
    dtype: torch.dtype, tokens: int, num_heads: int, num_kv_heads: int, dim: int
) -> None:
    qkv = randn(tokens, (num_heads + 2 * num_kv_heads) * dim, dtype=dtype)
    # Not a true rotation: the two halves of cos and sin differ, so that none can stand in for the other.
    cos, sin = randn(tokens, dim, dtype=dtype, seed=1), randn(tokens, dim, dtype=dtype, seed=2)
    kv_index = torch.randperm(100, generator=torch.Generator().manual_seed(3))[:tokens]
    q, k, v = transformers_rope(qkv, cos, sin, num_heads, num_kv_heads)
    keys, values = (torch.full((100, num_kv_heads, dim), float("nan"), dtype=dtype) for _ in range(2))
    rope_store(qkv, cos[None], sin, kv_index, keys, values, num_heads)
    assert torch.equal(qkv.view(tokens, -1, dim)[:, : num_heads + num_kv_heads], torch.cat((q, k), dim=1))
    assert torch.equal(keys[kv_index], k)
    assert torch.equal(values[kv_index], v)
    assert keys.isnan().all(dim=-1).sum() == values.isnan().all(dim=-1).sum() == (100 - tokens) * num_kv_heads


@DTYPES
@TOKENS
def test_the_sum_and_its_norm_equal_one_after_the_other_to_the_bit(dtype: torch.dtype, tokens: int) -> None:
    x, y, weight = (
        randn(tokens, 96, dtype=dtype),
        randn(tokens, 96, dtype=dtype, seed=1),
        randn(96, dtype=dtype, seed=2),
    )
    total, normed = add_rms_norm(x, y, weight, 1e-5)
    assert torch.equal(total, x + y)
    assert torch.equal(normed, rms_norm(x + y, weight, 1e-5))


@KERNEL_DTYPES
@pytest.mark.parametrize("threads", [1, 2])
def test_batch_mates_and_threads_change_no_bit(dtype: torch.dtype, threads: int) -> None:
    x, weight = randn(50, 96, dtype=dtype), randn(96, dtype=dtype, seed=1)
    norms, gated = (torch.cat([f(row[None]) for row in x]) for f in (lambda row: rms_norm(row, weight, 1e-5), silu_mul))
    torch.set_num_threads(threads)
    try:
        assert torch.equal(rms_norm(x, weight, 1e-5), norms)
        assert torch.equal(silu_mul(x), gated)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("change", ["cache of another dtype", "weight of another dtype", "strided"])
def test_what_the_kernels_do_not_take_is_computed_all_the_same(change: str) -> None:
    qkv, cos, sin = randn(3, 24), randn(3, 6), randn(3, 6, seed=1)
    keys, values, expected_keys, expected_values = torch.zeros(4, 9, 1, 6).unbind()
    weight, kv_index = randn(24), torch.tensor([4, 0, 7])
    if change == "cache of another dtype":
        with pytest.raises(RuntimeError, match="dtype"):
            rope_store(qkv, cos, sin, kv_index, keys.double(), values.double(), 2)
        return
    expected = qkv.clone()
    if change == "strided":
        qkv, cos, weight = (torch.stack((x, x), dim=-1)[..., 0] for x in (qkv, cos, weight))
    else:
        weight = weight.bfloat16()
    torch.testing.assert_close(rms_norm(qkv, weight, 1e-5), reference.rms_norm(expected, weight, 1e-5))
    torch.testing.assert_close(silu_mul(qkv), reference.silu_mul(expected))
    reference.rope_store(expected, cos, sin, kv_index, expected_keys, expected_values, 2)
    rope_store(qkv.contiguous(), cos, sin, kv_index, keys, values, 2)
    torch.testing.assert_close((keys, values), (expected_keys, expected_values))


def test_warm_up_compiles_what_a_step_needs() -> None:
    from atoll.kernels.cpu import attention, fused

    warm_up(torch.float32, torch.device("cpu"))
    kernels = (
        attention.decode_kernel,
        fused.rms_norm_kernel,
        fused.add_rms_norm_kernel,
        fused.silu_mul_kernel,
        fused.rope_store_kernel,
    )
    before = [len(kernel.signatures) for kernel in kernels]
    assert all(before)
    test_rms_norm_equals_transformers(torch.float32, 3, 30)
    test_silu_mul_equals_pytorch(torch.float32, 3, 37)
    test_rope_store_equals_transformers_to_the_bit(torch.float32, 3, 3, 1, 6)
    assert [len(kernel.signatures) for kernel in kernels] == before
