"""What the engine answers is what transformers and PEFT answer for each request alone, whatever else is going on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.engine import Completion, Request, SamplingParams
from support.engines import (
    ADAPTERS,
    NUM_REFERENCE_TOKENS,
    World,
    greedy_request,
    make_prompt,
    make_world,
    one_torch_thread,
)

# Three of them begin alike, for the prefix cache.
LONG = make_prompt(7, 40)
PROMPTS = st.sampled_from(
    [*(make_prompt(seed, length) for seed, length in enumerate([1, 2, 3, 5, 8])), LONG[:16], LONG[:17], LONG]
)
SEED = 1234


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with one_torch_thread():
        yield make_world(tmp_path_factory.mktemp("world"))


@given(
    jobs=st.lists(
        st.tuples(PROMPTS, st.sampled_from([None, *ADAPTERS]), st.integers(1, NUM_REFERENCE_TOKENS)),
        min_size=1,
        max_size=7,
    ),
    num_slots=st.integers(1, 3),
    max_batch_tokens=st.sampled_from([1, 2, 3, 7, 16, 64]),
    max_num_requests=st.integers(1, 6),
    block_size=st.sampled_from([1, 3, 4, 16]),
    num_extra_blocks=st.integers(0, 6),
    is_threaded=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_equals_transformers_and_peft_one_by_one(
    world: World,
    jobs: list[tuple[tuple[int, ...], str | None, int]],
    num_slots: int,
    max_batch_tokens: int,
    max_num_requests: int,
    block_size: int,
    num_extra_blocks: int,
    is_threaded: bool,
) -> None:
    """Chunked prompts, shared prefixes, forced preemption, evictions and mixed adapters change nothing."""
    longest = max(len(prompt) + num_new for prompt, _, num_new in jobs)
    engine = world.engine(
        num_slots=num_slots,
        num_blocks=-(-longest // block_size) + num_extra_blocks,
        block_size=block_size,
        max_batch_tokens=max_batch_tokens,
        max_num_requests=max_num_requests,
    )
    requests = [greedy_request(prompt, num, world.adapters[name] if name else None) for prompt, name, num in jobs]
    try:
        if is_threaded:
            engine.start()
        completions = engine.generate(requests)
    finally:
        engine.close()
    for completion, (prompt, name, num_new) in zip(completions, jobs, strict=True):
        assert completion.error is None
        assert completion.token_ids == world.reference(name, prompt)[:num_new]
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    assert stats.num_running == stats.num_waiting == 0
    num_known = stats.num_computed_tokens + stats.num_prefix_tokens_found
    # What a request finds when it comes back after a preemption, computed by another in the meantime, is not counted.
    most_found_again = stats.num_preemptions * longest
    assert num_known + most_found_again >= sum(len(prompt) + num_new - 1 for prompt, _, num_new in jobs)


def test_preemption_happens_and_changes_nothing(world: World) -> None:
    """The property above would be hollow if blocks never ran out in it."""
    prompts = [make_prompt(seed, 12) for seed in range(4)]
    engine = world.engine(num_blocks=12, block_size=4, max_batch_tokens=32)
    completions = engine.generate([greedy_request(prompt, NUM_REFERENCE_TOKENS) for prompt in prompts])
    assert engine.stats().num_preemptions > 0
    assert [completion.token_ids for completion in completions] == [world.reference(None, p) for p in prompts]
    engine.close()


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gemma3_text", "phi", "qwen3", "granite"])
def test_other_architectures(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Sliding windows, soft caps and the rest, with prompts in chunks and beyond the window of 24."""
    with one_torch_thread():
        check_architecture(make_world(tmp_path_factory.mktemp(architecture), architecture))


def check_architecture(world: World) -> None:
    jobs = [(make_prompt(7, 40), None), (make_prompt(8, 3), "alpha"), (make_prompt(9, 21), "delta")]
    engine = world.engine(max_batch_tokens=16, block_size=4)
    requests = [greedy_request(prompt, 12, world.adapters[name] if name else None) for prompt, name in jobs]
    completions = engine.generate(requests)
    engine.close()
    for completion, (prompt, name) in zip(completions, jobs, strict=True):
        assert completion.token_ids == world.reference(name, prompt)[:12]


def sampled_request(world: World, seed: int = SEED) -> Request:
    sampling = SamplingParams(max_new_tokens=12, temperature=1.3, top_p=0.95, seed=seed, ignore_eos=True)
    return Request(prompt_ids=make_prompt(3, 9), sampling=sampling, adapter=world.adapters["alpha"])


@pytest.fixture(scope="module")
def alone(world: World) -> Completion:
    engine = world.engine()
    (completion,) = engine.generate([sampled_request(world)])
    engine.close()
    return completion


@given(
    mates=st.lists(st.tuples(PROMPTS, st.sampled_from([None, *ADAPTERS]), st.integers(1, 9)), max_size=5),
    place=st.integers(0, 5),
    num_blocks=st.sampled_from([12, 64]),
    max_batch_tokens=st.sampled_from([3, 16, 64]),
)
@settings(max_examples=15, deadline=None)
def test_a_seeded_sample_does_not_depend_on_its_batch_mates(
    world: World,
    alone: Completion,
    mates: list[tuple[tuple[int, ...], str | None, int]],
    place: int,
    num_blocks: int,
    max_batch_tokens: int,
) -> None:
    engine = world.engine(num_slots=2, num_blocks=num_blocks, block_size=4, max_batch_tokens=max_batch_tokens)
    requests = []
    for index, (prompt, name, num_new) in enumerate(mates):
        request = greedy_request(prompt, num_new, world.adapters[name] if name else None)
        hot = replace(request.sampling, temperature=2.0)
        requests.append(replace(request, sampling=hot) if index % 2 else request)
    requests.insert(place, sampled := sampled_request(world))
    completions = {completion.request_id: completion for completion in engine.generate(requests)}
    engine.close()
    together = completions[sampled.request_id]
    assert together.token_ids == alone.token_ids
    assert [t.logprob for t in together.tokens] == pytest.approx([t.logprob for t in alone.tokens], abs=2e-4)


def test_other_seeds_give_other_samples(world: World, alone: Completion) -> None:
    engine = world.engine()
    completions = engine.generate([sampled_request(world, seed) for seed in range(20)])
    engine.close()
    assert len({completion.token_ids for completion in completions}) == 20
    assert alone.finish is not None
    assert alone.finish.seed == SEED
