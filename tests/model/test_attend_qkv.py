"""Attention from a fused projection against transformers' rotation followed by attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from atoll.kernels.kv import KVCache, KVShape
from atoll.model.attention import PackedContext, PagedContext, attending, current_context
from support.packing import spans_between

HEADS, KV_HEADS, DIM, BLOCK_SIZE = 6, 2, 16, 4
SPLIT = [HEADS, KV_HEADS, KV_HEADS]


def make_context(cache: KVCache) -> PagedContext:
    """A chunk of five tokens, one after six others, and one that begins."""
    table = torch.tensor([[3, 1], [0, 2], [4, 0]])
    kv_index = torch.tensor([12, 13, 14, 15, 4, 10, 16])
    return PagedContext.of_step(cache, torch.tensor([0, 5, 6, 7]), torch.tensor([5, 7, 1]), table, kv_index)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{"window": None, "softcap": None}, {"window": 3, "softcap": 2.0}])
def test_equals_rotation_and_attention(dtype: torch.dtype, options: dict[str, Any]) -> None:
    shapes = [KVShape(KV_HEADS, DIM, DIM)] * 2
    caches = [KVCache.allocate(shapes, num_blocks=5, block_size=4, dtype=dtype, device="cpu") for _ in range(2)]
    for cache in caches:
        torch.manual_seed(0)
        for tensor in cache.keys + cache.values:
            tensor.normal_()
    qkv = torch.randn(7, sum(SPLIT) * DIM).to(dtype)
    cos, sin = torch.randn(1, 7, DIM).to(dtype), torch.randn(1, 7, DIM).to(dtype)
    q, k, v = qkv.view(7, -1, DIM).transpose(0, 1)[None].clone().split_with_sizes(SPLIT, dim=1)
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    expected = make_context(caches[0]).attend(1, *(x[0].transpose(0, 1) for x in (q, k, v)), scale=0.25, **options)
    out = make_context(caches[1]).attend_qkv(
        1, qkv, cos, sin, num_heads=HEADS, num_kv_heads=KV_HEADS, scale=0.25, **options
    )
    torch.testing.assert_close(out, expected.flatten(1))
    for mine, theirs in zip(*(cache.keys + cache.values for cache in caches), strict=True):
        assert torch.equal(mine, theirs)


def test_the_current_context_is_an_engines_step() -> None:
    cache = KVCache.allocate([KVShape(1, 2, 2)], num_blocks=5, block_size=4, dtype=torch.float32, device="cpu")
    context = make_context(cache)
    with attending(context):
        assert current_context() is context
    with pytest.raises(RuntimeError, match="outside of an engine's step"):
        current_context()
    with (
        attending(PackedContext(spans_between([0, 3]))),
        pytest.raises(RuntimeError, match="outside of an engine's step"),
    ):
        current_context()
