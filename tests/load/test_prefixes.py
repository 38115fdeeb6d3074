"""The prefix cache changes no answer, finds all that it may find, and nothing of another tenant or adapter."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from atoll.engine import Completion, EngineConfig, Request
from support.engines import (
    ADAPTERS,
    NUM_REFERENCE_TOKENS,
    World,
    greedy_request,
    make_world,
    one_torch_thread,
)
from support.scale import scaled
from support.signatures import any_prompt
from support.signed import Ask, SignedWorld

BLOCK_SIZE = 4
TENANTS = ("", "one", "two")
TokenIds = tuple[int, ...]


@pytest.fixture(scope="module")
def random_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with one_torch_thread():
        yield make_world(tmp_path_factory.mktemp("world"))


@dataclass(frozen=True)
class Job:
    """What one request asks for."""

    tenant: str
    adapter: str | None
    prompt_ids: TokenIds
    num_new: int


def prompts_that_begin_alike() -> list[TokenIds]:
    """A long prompt, its beginnings at block boundaries and beside them, and others that leave it somewhere."""
    rng = random.Random(0)
    whole = any_prompt(rng, 40)
    forks = [whole[:length] + any_prompt(rng, 9) for length in (3, 4, 21, 36)]
    return [*(whole[:length] for length in (1, 4, 5, 16, 23, 40)), *forks]


def num_common_tokens(prompt_ids: TokenIds, kept: TokenIds) -> int:
    """Tokens of the full blocks at the beginning of a prompt, but for its last token, that `kept` begins with too."""
    length = min(len(prompt_ids) - 1, len(kept))
    differ = (place for place in range(length) if prompt_ids[place] != kept[place])
    return next(differ, length) // BLOCK_SIZE * BLOCK_SIZE


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("seed", range(scaled(2, 25)))
def test_a_mixed_batch_is_answered_as_each_request_alone(random_world: World, seed: int, prefix_cache: bool) -> None:
    """Few blocks: cached ones are evicted and requests preempted. PEFT answers alone."""
    rng = random.Random(seed)
    prompts = prompts_that_begin_alike()
    engine = random_world.engine(
        num_slots=3,
        num_blocks=rng.choice([20, 60]),
        block_size=BLOCK_SIZE,
        max_num_requests=6,
        max_batch_tokens=rng.choice([7, 48]),
        prefix_cache=prefix_cache,
    )
    jobs, completions = [], []
    for _ in range(3):
        wave = [
            Job(
                rng.choice(TENANTS),
                rng.choice([None, *ADAPTERS]),
                rng.choice(prompts),
                rng.randint(1, NUM_REFERENCE_TOKENS),
            )
            for _ in range(20)
        ]
        jobs += wave
        completions += engine.generate([request_of(random_world, job) for job in wave])
    engine.close()
    for job, completion in zip(jobs, completions, strict=True):
        assert completion.token_ids == random_world.reference(job.adapter, job.prompt_ids)[: job.num_new]
    assert_only_own_prefixes_were_found(jobs, completions)
    num_found = sum(num_cached_tokens(completion) for completion in completions)
    assert (num_found > 0) == prefix_cache
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks


def request_of(world: World, job: Job) -> Request:
    request = greedy_request(job.prompt_ids, job.num_new, world.adapters[job.adapter] if job.adapter else None)
    return replace(request, tenant=job.tenant)


def num_cached_tokens(completion: Completion) -> int:
    assert completion.finish is not None, completion.error
    return completion.finish.num_cached_tokens


def assert_only_own_prefixes_were_found(jobs: list[Job], completions: list[Completion]) -> None:
    """At most what other requests of the same tenant for the same adapter began with."""
    for job, completion in zip(jobs, completions, strict=True):
        mates = [
            other.prompt_ids + mate.token_ids
            for other, mate in zip(jobs, completions, strict=True)
            if mate is not completion and (other.tenant, other.adapter) == (job.tenant, job.adapter)
        ]
        longest = max((num_common_tokens(job.prompt_ids, kept) for kept in mates), default=0)
        assert num_cached_tokens(completion) <= longest


@pytest.mark.parametrize("seed", range(scaled(2, 25)))
def test_one_by_one_everything_is_found_that_may_be(world: SignedWorld, seed: int) -> None:
    """With room for all: the longest beginning in full blocks of tenant and adapter; none of an earlier revision."""
    rng = random.Random(seed)
    prompts = prompts_that_begin_alike()
    kept: dict[tuple[str, str | None], list[TokenIds]] = defaultdict(list)
    config = EngineConfig(block_size=BLOCK_SIZE, max_num_requests=2, max_length=128, kv_cache_bytes=20_000_000)
    engine = world.engine(num_slots=3, config=config)
    for _ in range(80):
        name = rng.choice([None, *world.names[:3]])
        if name and rng.random() < 0.1:
            world.publish(name)
        ask, tenant = world.ask(name, rng, num_tokens=rng.randint(1, 9)), rng.choice(TENANTS)
        ask = Ask(replace(ask.request, prompt_ids=rng.choice(prompts), tenant=tenant), ask.signature, ask.logprobs)
        (completion,) = engine.generate([ask.request])
        ask.check(list(completion.tokens))
        mates = kept[tenant, ask.request.adapter.digest if ask.request.adapter else None]
        expected = max((num_common_tokens(ask.request.prompt_ids, mate) for mate in mates), default=0)
        assert num_cached_tokens(completion) == expected
        mates.append(ask.request.prompt_ids + completion.token_ids[:-1])
    engine.close()
