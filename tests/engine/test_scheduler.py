"""What the scheduler promises: who runs, who waits, who is preempted, and what the prefix cache finds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.engine.blocks import BlockPool
from atoll.engine.prefix import extend_keys, root_key
from atoll.engine.scheduler import Scheduler
from support.scheduling import BROKEN, Limits, make_request, run_one_step


def finish_all(scheduler: Scheduler) -> None:
    while scheduler.running or scheduler.num_waiting:
        run_one_step(scheduler)


# Adapters


@given(seed_stream=st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=6), prompt=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_an_adapter_without_a_slot_is_served_although_the_others_never_stop(
    seed_stream: list[str], prompt: int
) -> None:
    """Two slots are kept busy for ever by a and b; c must still come to its turn."""
    limits = Limits(num_blocks=64, block_size=4, num_slots=2, max_batch_tokens=32, max_num_requests=4)
    _, _, scheduler = limits.build(is_instant=True)
    for adapter in ("a", "b"):
        scheduler.add(make_request(prompt, 8, adapter))
    run_one_step(scheduler)
    starved = scheduler.add(make_request(prompt, 3, "c"))
    for step in range(200):
        scheduler.add(make_request(prompt, 5, seed_stream[step % len(seed_stream)]))
        if starved.arrival in run_one_step(scheduler):
            assert starved.num_overtakers <= limits.max_overtakers + limits.max_num_requests
            return
    pytest.fail("never served")


def test_others_run_while_an_adapter_loads_however_long_it_takes() -> None:
    limits = Limits(num_blocks=64, block_size=4, num_slots=2, max_batch_tokens=32, max_num_requests=4)
    _, slots, scheduler = limits.build()
    loading = scheduler.add(make_request(3, 3, "a"))
    scheduler.add(make_request(3, 3, "b"))
    run_one_step(scheduler)
    slots.ready.add("b")
    num_finished = 0
    for _ in range(100):
        scheduler.add(make_request(3, 3, "b"))
        scheduler.add(make_request(3, 3, None))
        num_finished += len(run_one_step(scheduler))
    assert num_finished > 100
    assert not loading.is_running
    slots.ready.add("a")
    for _ in range(10):
        if loading.arrival in run_one_step(scheduler):
            return
    pytest.fail("not served although its adapter is there")


def test_one_broken_adapter_fails_all_its_requests_at_once_and_no_other() -> None:
    limits = Limits(num_blocks=64, block_size=4, num_slots=1, max_batch_tokens=32, max_num_requests=8)
    _, _, scheduler = limits.build(is_instant=True)
    broken = [scheduler.add(make_request(2, 2, BROKEN)) for _ in range(3)]
    well = scheduler.add(make_request(2, 2, "a"))
    batch = scheduler.schedule()
    assert [state for state, _ in batch.failures] == broken
    assert [chunk.state for chunk in batch.chunks] == [well]


# Blocks and preemption


def test_lack_of_blocks_holds_back_those_behind() -> None:
    """A small request may not pass a big one for ever."""
    limits = Limits(num_blocks=8, block_size=4, num_slots=1, max_batch_tokens=64, max_num_requests=8)
    _, _, scheduler = limits.build()
    scheduler.add(make_request(12, 4))
    run_one_step(scheduler)
    big = scheduler.add(make_request(range(50, 74), 2))
    small = scheduler.add(make_request(1, 1))
    run_one_step(scheduler)
    assert not big.is_running
    assert not small.is_running


def test_the_youngest_is_preempted_and_the_oldest_never(caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(num_blocks=4, block_size=2, num_slots=1, max_batch_tokens=16, max_num_requests=4)
    pool, _, scheduler = limits.build()
    old, young = (scheduler.add(make_request([seed, seed], 6)) for seed in range(2))
    run_one_step(scheduler)
    while not scheduler.num_preemptions:
        assert old.is_running
        run_one_step(scheduler)
    assert old.is_running
    assert not young.is_running
    assert young.num_computed == 0
    assert len(young.token_ids) > 2, "what was generated is kept"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message == f"no KV block is free: request {young.request.request_id} is preempted"
    finish_all(scheduler)
    assert len(young.token_ids) == len(old.token_ids) == 8
    assert pool.num_free == 4


def test_a_newcomer_leaves_a_block_to_those_who_run() -> None:
    """Else it would be preempted as soon as one of them needs its next block."""
    limits = Limits(num_blocks=4, block_size=2, num_slots=1, max_batch_tokens=16, max_num_requests=4)
    _, _, scheduler = limits.build()
    scheduler.add(make_request(3, 3))
    newcomer = scheduler.add(make_request([7, 8, 9, 9], 2))
    while not newcomer.is_running:
        run_one_step(scheduler)
    assert scheduler.num_preemptions == 0
    assert list(scheduler.running) == [newcomer]


def test_a_block_cannot_be_released_twice() -> None:
    pool = BlockPool(4, 16)
    block_ids = pool.allocate(2)
    pool.release(block_ids)
    with pytest.raises(RuntimeError, match="released twice"):
        pool.release(block_ids)
    with pytest.raises(RuntimeError, match="5 blocks wanted, 4 free"):
        pool.allocate(5)


def test_an_abort_gives_everything_back_at_once() -> None:
    """A request in the middle of its prompt, one that generates and one that waits; their batch-mate goes on."""
    limits = Limits(num_blocks=40, block_size=4, num_slots=2, max_batch_tokens=8, max_num_requests=3)
    pool, slots, scheduler = limits.build(is_instant=True)
    generating = scheduler.add(make_request(4, 20, "a"))
    mate = scheduler.add(make_request([5], 20, "b"))
    run_one_step(scheduler)
    prefilling = scheduler.add(make_request(40, 20, "a"))
    run_one_step(scheduler)
    waiting = scheduler.add(make_request(4, 20, "a"))
    assert 0 < prefilling.num_computed < 40
    for state in (generating, prefilling, waiting):
        scheduler.remove(state)
    assert pool.num_free == 40 - len(mate.block_ids)
    assert slots.pins == {"a": 0, "b": 1}
    assert [chunk.state for chunk in scheduler.schedule().chunks] == [mate]


# The prefix cache


def cached_tokens(scheduler: Scheduler, prompt: list[int], adapter: str | None = None, tenant: str = "") -> int:
    """Run a request to its end; returns how much of its prompt was found."""
    state = scheduler.add(make_request(prompt, 1, adapter, tenant))
    finish_all(scheduler)
    return state.num_cached_tokens


def test_what_the_cache_finds() -> None:
    limits = Limits(num_blocks=64, block_size=4, num_slots=2, max_batch_tokens=64, max_num_requests=4)
    pool, _, scheduler = limits.build(is_instant=True)
    prompt = list(range(16))
    assert cached_tokens(scheduler, prompt) == 0
    assert pool.num_cached == 4
    assert cached_tokens(scheduler, prompt) == 12, "the last token is computed, so its block is"
    assert cached_tokens(scheduler, [*prompt, 99]) == 16
    assert cached_tokens(scheduler, [*prompt[:9], 99, *prompt[10:]]) == 8
    assert cached_tokens(scheduler, prompt[1:]) == 0
    assert cached_tokens(scheduler, prompt, "a") == 0
    assert cached_tokens(scheduler, prompt, "a") == 12
    assert cached_tokens(scheduler, prompt, "b") == 0
    assert cached_tokens(scheduler, prompt, "a", "somebody else") == 0
    assert scheduler.num_prefix_tokens_found == 12 + 16 + 8 + 12
    assert scheduler.num_prefix_tokens == 16 + 16 + 17 + 16 + 15 + 4 * 16


def test_generated_tokens_are_found_too() -> None:
    """The next turn of a conversation begins with the answer of the one before."""
    limits = Limits(num_blocks=64, block_size=4, num_slots=1, max_batch_tokens=64, max_num_requests=4)
    _, _, scheduler = limits.build()
    first = scheduler.add(make_request(6, 11))
    finish_all(scheduler)
    assert cached_tokens(scheduler, [*first.token_ids, 1, 2, 3]) == 16


def test_the_least_recently_used_prefix_goes_first_and_from_its_end() -> None:
    limits = Limits(num_blocks=10, block_size=4, num_slots=1, max_batch_tokens=64, max_num_requests=4)
    _, _, scheduler = limits.build()
    old, young = list(range(16)), list(range(100, 116))
    cached_tokens(scheduler, old)
    cached_tokens(scheduler, young)
    cached_tokens(scheduler, list(range(200, 213)))
    assert cached_tokens(scheduler, [*young, 0]) == 16
    assert cached_tokens(scheduler, [*old, 0]) == 8


def test_blocks_in_use_are_not_evicted() -> None:
    limits = Limits(num_blocks=8, block_size=4, num_slots=1, max_batch_tokens=64, max_num_requests=4)
    pool, _, scheduler = limits.build()
    scheduler.add(make_request(8, 4))
    run_one_step(scheduler)
    sharing = scheduler.add(make_request([*range(8), 9], 4))
    run_one_step(scheduler)
    assert sharing.num_cached_tokens == 8
    assert pool.num_free == 8 - 4
    with pytest.raises(RuntimeError):
        pool.allocate(5)


def test_a_block_is_not_found_before_it_is_computed() -> None:
    """Two requests with one prompt in one step: both compute it, one of them is kept."""
    limits = Limits(num_blocks=64, block_size=4, num_slots=1, max_batch_tokens=64, max_num_requests=4)
    pool, _, scheduler = limits.build()
    twins = [scheduler.add(make_request(8, 2)) for _ in range(2)]
    batch = scheduler.schedule()
    assert batch.num_tokens == 16
    assert pool.num_cached == 0
    scheduler.advance(batch)
    assert pool.num_cached == 2
    assert not set(twins[0].block_ids) & set(twins[1].block_ids)


def test_a_preempted_request_finds_its_own_blocks() -> None:
    limits = Limits(num_blocks=8, block_size=2, num_slots=1, max_batch_tokens=32, max_num_requests=4)
    _, _, scheduler = limits.build()
    states = [scheduler.add(make_request([seed] * 4, 8)) for seed in range(2)]
    num_computed = 0
    while scheduler.running or scheduler.num_waiting:
        batch = scheduler.schedule()
        num_computed += batch.num_tokens
        scheduler.advance(batch)
        for chunk in batch.chunks:
            if chunk.is_last:
                chunk.state.token_ids.append(len(chunk.state.token_ids))
            if len(chunk.state.token_ids) == 12:
                scheduler.remove(chunk.state)
    assert scheduler.num_preemptions > 0
    assert num_computed < 2 * 11 + 8, "a preempted request computed all again"
    assert [state.num_cached_tokens for state in states] == [0, 0], "what it found again is not the client's"


def test_keys_stand_for_all_that_a_block_depends_on() -> None:
    keys = [root_key(tenant, digest) for tenant in ("", "a", "null") for digest in (None, "", "a", "null")]
    assert len(set(keys)) == len(keys)
    chains = []
    for token_ids in ([1, 2, 3, 4], [3, 4, 1, 2], [1, 2], [2**40, 0]):
        chain = [keys[0]]
        extend_keys(chain, token_ids, block_size=2, num_blocks=len(token_ids) // 2)
        chains.append(chain[1:])
    assert chains[0][0] == chains[2][0]
    assert len({key for chain in chains for key in chain}) == 5
