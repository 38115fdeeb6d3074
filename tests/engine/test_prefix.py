"""The prefix cache in the engine: less is computed, the same comes out, and nobody reads what is not his."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from atoll.adapters.store import StoredAdapter, adapter_digest
from atoll.engine import Completion, Engine, Request
from support.adapters import save_random_adapter
from support.engines import World, greedy_request, make_prompt
from support.tiny import make_model

PREFIX = make_prompt(0, 40)


def complete(engine: Engine, request: Request) -> Completion:
    (completion,) = engine.generate([request])
    assert completion.finish is not None
    return completion


def num_cached(completion: Completion) -> int:
    assert completion.finish is not None
    return completion.finish.num_cached_tokens


@pytest.mark.parametrize("name", [None, "alpha"])
def test_a_known_prefix_is_not_computed_again(world: World, engine: Engine, name: str | None) -> None:
    adapter = world.adapters[name] if name else None
    prompts = [(*PREFIX, *make_prompt(seed, 5)) for seed in range(3)]
    completions = [complete(engine, greedy_request(prompt, 6, adapter)) for prompt in prompts]
    assert [completion.token_ids for completion in completions] == [world.reference(name, p)[:6] for p in prompts]
    assert [num_cached(completion) for completion in completions] == [0, 32, 32]
    stats = engine.stats()
    assert stats.num_prefix_tokens == 3 * 45
    assert stats.num_prefix_tokens_found == 64
    assert stats.num_computed_tokens == 3 * (45 + 5) - 64
    assert 0 < stats.num_cached_blocks < stats.num_blocks == stats.num_free_blocks


def test_the_next_turn_of_a_conversation(world: World, engine: Engine) -> None:
    first = complete(engine, greedy_request(PREFIX, 16))
    prompt = (*PREFIX, *first.token_ids, *make_prompt(1, 4))
    second = complete(engine, greedy_request(prompt, 6))
    assert num_cached(second) == 48
    assert second.token_ids == world.reference(None, prompt)[:6]


def test_the_same_prompt_again_computes_its_last_token(world: World, engine: Engine) -> None:
    prompt = PREFIX[:32]
    again = [complete(engine, greedy_request(prompt, 8)) for _ in range(2)][1]
    assert num_cached(again) == 16
    assert again.token_ids == world.reference(None, prompt)[:8]


def test_adapters_and_tenants_share_nothing(world: World, engine: Engine) -> None:
    for name in (None, "alpha", "beta"):
        for tenant in ("", "other"):
            adapter = world.adapters[name] if name else None
            completion = complete(engine, replace(greedy_request(PREFIX, 6, adapter), tenant=tenant))
            assert num_cached(completion) == 0
            assert completion.token_ids == world.reference(name, PREFIX)[:6]


def test_a_new_revision_meets_no_block_of_the_old_one(world: World, engine: Engine, tmp_path: Path) -> None:
    old = complete(engine, greedy_request(PREFIX, 6, world.adapters["alpha"]))
    folder = save_random_adapter(tmp_path / "alpha", make_model(), seed=99, r=4)
    revised = StoredAdapter(name="alpha", revision=0, digest=adapter_digest(folder), folder=folder, contract=None)
    new = complete(engine, greedy_request(PREFIX, 6, revised))
    assert num_cached(new) == 0
    assert new.token_ids != old.token_ids
    fresh = world.engine()
    assert complete(fresh, greedy_request(PREFIX, 6, revised)).token_ids == new.token_ids
    fresh.close()


def test_it_can_be_switched_off(world: World) -> None:
    engine = world.engine(prefix_cache=False)
    for _ in range(2):
        completion = complete(engine, greedy_request(PREFIX, 6))
        assert num_cached(completion) == 0
        assert completion.token_ids == world.reference(None, PREFIX)[:6]
    assert engine.stats().num_cached_blocks == engine.stats().num_prefix_tokens == 0
    engine.close()


def test_max_length_is_what_the_cache_holds(world: World) -> None:
    """So a caller who fills the rest asks for no more than there is."""
    engine = world.engine(num_blocks=4, block_size=4)
    assert engine.max_length == 17
    completion = complete(engine, greedy_request(PREFIX[:10], engine.max_length - 10))
    assert completion.token_ids == world.reference(None, PREFIX[:10])[:7]
    engine.close()
