"""transformers' architectures under Atoll's attention against the same models under transformers' own."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from atoll.errors import Incompatible
from atoll.kernels.kv import KVCache
from atoll.model.attention import PackedContext, PagedContext, atoll_attention, attending
from atoll.model.probe import probe
from support.packing import spans_between
from support.tiny import ARCHITECTURES, make_model

# Longer than the tiny models' windows (24), shorter, and of one token.
LENGTHS = (40, 1, 7, 30, 65)
BLOCK_SIZE = 4


@pytest.fixture(params=sorted(ARCHITECTURES))
def model(request: pytest.FixtureRequest) -> Any:
    return make_model(request.param)


def draw_sequences(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 300, (length,), generator=generator) for length in LENGTHS]


def own_logits(model: Any, sequences: Sequence[Tensor], attention: str) -> list[Tensor]:
    """What transformers computes for each sequence alone."""
    model.set_attn_implementation(attention)
    with torch.inference_mode():
        logits = [model(input_ids=ids[None], use_cache=False).logits[0] for ids in sequences]
    model.set_attn_implementation("atoll")
    return logits


def run(model: Any, ids: Tensor, positions: Tensor, **options: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids[None], position_ids=positions[None], use_cache=False, **options).logits[0]
    return logits


def packed(sequences: Sequence[Tensor]) -> tuple[PackedContext, Tensor, Tensor]:
    spans = spans_between([0, *itertools.accumulate(len(ids) for ids in sequences)])
    return PackedContext(spans), torch.cat(list(sequences)), torch.cat([torch.arange(len(ids)) for ids in sequences])


def test_packed_examples_equal_each_alone(model: Any) -> None:
    sequences = draw_sequences()
    # The soft cap of Gemma 2 exists in transformers' eager attention only.
    attention = "eager" if getattr(model.config, "attn_logit_softcapping", None) else "sdpa"
    reference = torch.cat(own_logits(model, sequences, attention))
    context, ids, positions = packed(sequences)
    with torch.inference_mode(), attending(context):
        logits = run(model, ids, positions)
        some = run(model, ids, positions, logits_to_keep=torch.tensor([3, 39, 100]))
    torch.testing.assert_close(logits, reference, rtol=0, atol=1e-5)
    torch.testing.assert_close(some, reference[[3, 39, 100]], rtol=0, atol=1e-5)


def test_paged_steps_equal_one_forward_pass(model: Any) -> None:
    rng = random.Random(0)
    sequences = draw_sequences()
    reference = own_logits(model, sequences, "eager")
    cache = KVCache.allocate(probe(model), num_blocks=64, block_size=BLOCK_SIZE, dtype=torch.float32, device="cpu")
    free = rng.sample(range(64), 64)
    tables = [[free.pop() for _ in range(-(-len(ids) // BLOCK_SIZE))] for ids in sequences]
    done = [0] * len(sequences)
    while waiting := [i for i, ids in enumerate(sequences) if done[i] < len(ids)]:
        spans = []
        for i in rng.sample(waiting, rng.randint(1, len(waiting))):
            stop = min(done[i] + rng.choice([1, 1, 6, 20]), len(sequences[i]))
            spans.append((i, done[i], stop))
            done[i] = stop
        logits = paged_step(model, cache, sequences, tables, spans)
        expected = torch.cat([reference[i][start:stop] for i, start, stop in spans])
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def paged_step(
    model: Any,
    cache: KVCache,
    sequences: list[Tensor],
    tables: list[list[int]],
    spans: list[tuple[int, int, int]],
) -> Tensor:
    """Run the tokens [start, stop) of sequences i, for each (i, start, stop) of `spans`, in one step."""
    width = max(len(tables[i]) for i, _, _ in spans)
    positions = [torch.arange(start, stop) for _, start, stop in spans]
    kv_index = [
        torch.tensor(tables[i])[where // BLOCK_SIZE] * BLOCK_SIZE + where % BLOCK_SIZE
        for (i, _, _), where in zip(spans, positions, strict=True)
    ]
    context = PagedContext.of_step(
        cache,
        query_start=torch.tensor([0, *(stop - start for _, start, stop in spans)]).cumsum(0).int(),
        seq_lens=torch.tensor([stop for _, _, stop in spans], dtype=torch.int32),
        block_table=torch.tensor([tables[i] + [-1] * (width - len(tables[i])) for i, _, _ in spans]).int(),
        kv_index=torch.cat(kv_index),
    )
    ids = torch.cat([sequences[i][start:stop] for i, start, stop in spans])
    with torch.inference_mode(), attending(context):
        return run(model, ids, torch.cat(positions))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_gradients_equal_those_of_examples_alone(checkpointing: bool) -> None:
    model: Any = make_model("llama")
    sequences = draw_sequences()
    for ids in sequences:
        model(input_ids=ids[None], use_cache=False).logits.logsumexp(-1).sum().backward()
    reference = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.set_attn_implementation("atoll")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    context, ids, positions = packed(sequences)
    with attending(context):
        run(model, ids, positions).logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, reference[name], rtol=1e-4, atol=1e-4)


def test_a_model_outside_a_context_and_a_nested_context_are_errors() -> None:
    model: Any = make_model("llama")
    model.set_attn_implementation("atoll")
    context, ids, positions = packed(draw_sequences())
    with pytest.raises(RuntimeError, match="outside"):
        run(model, ids, positions)
    with attending(context), pytest.raises(RuntimeError, match="does not nest"), attending(context):
        pass
    with attending(context), pytest.raises(RuntimeError, match="the context is for"):
        run(model, ids[1:], positions[1:])
    with attending(context):  # the errors have left nothing in force
        run(model, ids, positions)


def test_packed_context_is_found_by_threads_of_autograd_and_paged_is_not() -> None:
    model: Any = make_model("llama")
    model.set_attn_implementation("atoll")
    context, ids, positions = packed(draw_sequences())
    failures: list[Exception] = []

    def elsewhere() -> None:
        try:
            run(model, ids, positions)
        except RuntimeError as error:
            failures.append(error)

    def from_another_thread() -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    with attending(context):
        from_another_thread()
    assert not failures
    cache = KVCache.allocate(probe(model), num_blocks=1, block_size=4, dtype=torch.float32, device="cpu")
    one = torch.tensor([1])
    with attending(PagedContext.of_step(cache, torch.tensor([0, 1]), one, torch.tensor([[0]]), torch.tensor([0]))):
        from_another_thread()
    assert len(failures) == 1


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"dropout": 0.1}, "dropout"),
        ({"position_bias": torch.zeros(1, 4, 3, 3)}, "position_bias"),
        ({"is_causal": False}, "both directions"),
    ],
)
def test_what_would_change_the_result_unnoticed_is_refused(option: dict[str, object], name: str) -> None:
    llama: Any = make_model("llama")
    module = llama.model.layers[0].self_attn
    q, kv = torch.zeros(1, 4, 3, 16), torch.zeros(1, 2, 3, 16)
    context = PackedContext(spans_between([0, 3]))
    with attending(context), pytest.raises(Incompatible, match=name):
        atoll_attention(module, q, kv, kv, None, **option)  # type: ignore[arg-type]
    harmless = {"is_causal": True, "use_cache": False, "position_ids": torch.arange(3), "output_attentions": False}
    with attending(context):
        out, _ = atoll_attention(module, q, kv, kv, None, **harmless)  # type: ignore[arg-type]
    assert out.shape == (1, 3, 4, 16)


@pytest.mark.parametrize(
    ("architecture", "fields", "reason"),
    [
        ("gpt_oss", {"num_local_experts": 2, "head_dim": 16}, "s_aux"),
        ("llama4_text", {"num_local_experts": 2, "intermediate_size_mlp": 96, "head_dim": 16}, "masks its attention"),
        ("mistral", {"is_causal": False}, "both directions"),
        ("qwen3_next", {"num_experts": 2}, "outside its attention"),
        ("gpt2", {}, "nn.Linear"),
        ("bloom", {}, "position_ids"),
    ],
)
def test_architectures_that_compute_otherwise_are_refused(
    architecture: str, fields: dict[str, object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, architecture, fields)
    with pytest.raises(Incompatible, match=reason):
        probe(make_model(architecture))
