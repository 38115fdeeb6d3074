"""A fused model against the same model with its blocks as transformers defines them, adapters in both."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atoll.adapters.bank import AdapterBank
from atoll.adapters.peft_io import AdapterWeights
from atoll.adapters.routing import Routing
from atoll.kernels.cpu import gemv
from atoll.kernels.cpu.layer import FewRowsLayer
from atoll.kernels.cpu.values import FEATURES
from atoll.kernels.kv import KVCache
from atoll.kernels.lora import LoraWeights
from atoll.model.attention import PagedContext, attending
from atoll.model.fuse import FusedAttention, FusedLayer, FusedMLP, FusedRMSNorm, fuse
from atoll.model.probe import probe
from support.tiny import ARCHITECTURES, make_model

SLOTS = (-1, 0, 0, 2)
PROMPT_LENGTHS = (30, 5, 9, 41)
BLOCK_SIZE = 4
NUM_BLOCKS = 16  # of one request


def make_bank(model: nn.Module) -> AdapterBank:
    bank = AdapterBank(model, num_slots=3, max_rank=8)
    generator = torch.Generator().manual_seed(1)
    for slot, rank in ((0, 8), (2, 3)):
        modules = {
            name: LoraWeights(
                torch.randn(rank, layer.in_features, generator=generator) / 8,
                torch.randn(layer.out_features, rank, generator=generator) / 8,
                0.5,
            )
            for name, layer in bank.layers.items()
            if slot == 0 or not name.endswith(("k_proj", "up_proj"))
        }
        bank.load(slot, AdapterWeights(modules, where="test"))
    return bank


def serve(model: Any, bank: AdapterBank, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The logits of one step with all prompts and of five with one token each."""
    cache = KVCache.allocate(
        model.kv_shapes, num_blocks=NUM_BLOCKS * len(SLOTS), block_size=BLOCK_SIZE, dtype=dtype, device="cpu"
    )
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, 300, (length,), generator=generator) for length in PROMPT_LENGTHS]
    steps = [serve_step(model, bank, cache, prompts, [0] * len(SLOTS))]
    for i in range(5):
        tokens = [torch.tensor([7 + i]) for _ in SLOTS]
        steps.append(serve_step(model, bank, cache, tokens, [length + i for length in PROMPT_LENGTHS]))
    return steps


def serve_step(model: Any, bank: AdapterBank, cache: KVCache, tokens: list[Tensor], starts: list[int]) -> Tensor:
    positions = [start + torch.arange(len(ids)) for start, ids in zip(starts, tokens, strict=True)]
    tables = torch.arange(NUM_BLOCKS * len(SLOTS)).view(len(SLOTS), NUM_BLOCKS)
    lengths = torch.tensor([len(ids) for ids in tokens])
    rows = torch.repeat_interleave(torch.arange(len(tokens)), lengths)
    where = torch.cat(positions)
    context = PagedContext.of_step(
        cache,
        query_start=torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int(),
        seq_lens=(torch.tensor(starts) + lengths).int(),
        block_table=tables.int(),
        kv_index=tables[rows, where // BLOCK_SIZE] * BLOCK_SIZE + where % BLOCK_SIZE,
    )
    routing = Routing.from_lengths(zip(SLOTS, lengths.tolist(), strict=True))
    with torch.inference_mode(), bank.routed(routing), attending(context):
        ids = torch.cat(tokens)[None]
        logits: Tensor = model(input_ids=ids, position_ids=where[None], use_cache=False).logits[0]
    return logits


def make_pair(architecture: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    plain: Any = make_model(architecture).to(dtype)
    plain.kv_shapes = probe(plain)
    return plain, copy.deepcopy(plain)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_fused_logits_equal_those_of_the_unfused_model(architecture: str) -> None:
    plain, fused = make_pair(architecture)
    banks = make_bank(plain), make_bank(fused)
    fuse(fused)
    for logits, expected in zip(serve(fused, banks[1]), serve(plain, banks[0]), strict=True):
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)


def test_fused_logits_in_bfloat16_are_as_near_to_the_exact_ones_as_the_unfused_models() -> None:
    exact, _ = make_pair("llama")
    plain, fused = make_pair("llama", torch.bfloat16)
    banks = make_bank(exact), make_bank(plain), make_bank(fused)
    fuse(fused)
    expected = torch.cat(serve(exact, banks[0]))
    error = (torch.cat(serve(plain, banks[1], torch.bfloat16)).float() - expected).abs().mean()
    fused_error = (torch.cat(serve(fused, banks[2], torch.bfloat16)).float() - expected).abs().mean()
    assert fused_error <= 1.2 * error


def test_adapters_loaded_and_cleared_after_fusing_take_effect() -> None:
    plain, fused = make_pair("llama")
    fused_bank = make_bank(fused)
    fuse(fused)
    with_adapters = serve(fused, fused_bank)[0]
    for slot in (0, 2):
        fused_bank.clear(slot)
    bank = AdapterBank(plain, num_slots=3, max_rank=8)
    torch.testing.assert_close(serve(fused, fused_bank)[0], serve(plain, bank)[0], rtol=0, atol=2e-4)
    assert not torch.equal(serve(fused, fused_bank)[0], with_adapters)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "granite"])
def test_architectures_that_compute_as_llama_are_fused(architecture: str) -> None:
    model: Any = make_model(architecture)
    AdapterBank(model, num_slots=1, max_rank=8)
    fuse(model)
    kinds = {type(module) for module in model.modules()}
    assert {FusedAttention, FusedMLP, FusedRMSNorm} <= kinds
    # Granite multiplies what it adds to the residual.
    assert (FusedLayer in kinds) == (architecture != "granite")


def test_attention_that_differs_from_the_known_ones_is_left_alone() -> None:
    model: Any = make_model("gemma2")
    AdapterBank(model, num_slots=1, max_rank=8)
    fuse(model)
    kinds = {type(module) for module in model.modules()}
    assert FusedMLP in kinds
    assert FusedAttention not in kinds
    assert FusedLayer not in kinds
    assert FusedRMSNorm not in kinds


def test_eight_bits_stay_close_and_differ() -> None:
    plain, fused = make_pair("llama")
    banks = make_bank(plain), make_bank(fused)
    fuse(fused, bits=8)
    logits, expected = torch.cat(serve(fused, banks[1])), torch.cat(serve(plain, banks[0]))
    error = (logits - expected).norm() / expected.norm()
    assert 0 < error < 0.05


@pytest.mark.skipif(
    not {"+avx512f", "+avx512bf16", "+avx512vnni"} <= FEATURES,
    reason="other processors have no kernel for all of these",
)
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2"])
def test_a_whole_layer_by_one_kernel_has_the_bits_of_its_parts(
    architecture: str, dtype: torch.dtype, bits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fused = make_pair(architecture, dtype)
    bank = make_bank(fused)
    fuse(fused, bits=bits)
    num_calls, run = 0, FewRowsLayer.__call__

    def count(*arguments: Any) -> Tensor:
        nonlocal num_calls
        num_calls += 1
        return run(*arguments)

    monkeypatch.setattr(FewRowsLayer, "__call__", count)
    by_layers = serve(fused, bank, dtype)
    assert num_calls == 5 * fused.config.num_hidden_layers
    monkeypatch.setattr(FewRowsLayer, "fits", lambda *arguments: False)
    for logits, expected in zip(by_layers, serve(fused, bank, dtype), strict=True):
        assert torch.equal(logits, expected)
    assert num_calls == 5 * fused.config.num_hidden_layers


def test_a_layer_with_parts_that_have_no_kernel_is_run_by_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemv, "find_blocks", lambda packed, weight: None)
    monkeypatch.setattr(FewRowsLayer, "__call__", None)
    plain, fused = make_pair("llama")
    banks = make_bank(plain), make_bank(fused)
    fuse(fused)
    for logits, expected in zip(serve(fused, banks[1]), serve(plain, banks[0]), strict=True):
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)
