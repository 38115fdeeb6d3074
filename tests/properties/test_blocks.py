"""Blocks and slots are conserved, the budget holds and nobody starves, under random schedules and without a model."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atoll.adapters.routing import BASE_SLOT
from atoll.engine.blocks import BlockPool
from atoll.engine.state import RequestState, ScheduledBatch
from support.scheduling import (
    BROKEN,
    NUM_TOKENS,
    FakeModel,
    Limits,
    expected_tokens,
    is_done,
    make_request,
    next_token,
    run_one_step,
)

LIMITS = st.builds(
    Limits,
    num_blocks=st.integers(2, 12),
    block_size=st.integers(1, 4),
    num_slots=st.integers(1, 3),
    max_batch_tokens=st.integers(1, 16),
    max_num_requests=st.integers(1, 6),
    prefix_cache=st.sampled_from([True, True, False]),
)
# Beginnings that come again and again, and ends that differ.
PROMPTS = st.tuples(
    st.integers(0, 12).map(lambda length: [position % NUM_TOKENS for position in range(length)]),
    st.lists(st.integers(0, NUM_TOKENS - 1), min_size=1, max_size=8),
).map(lambda parts: [*parts[0], *parts[1]])
TENANTS = st.sampled_from(["", "", "other"])


class Schedules(RuleBasedStateMachine):
    """Requests come, run, grow, abort and finish in any order; adapters load whenever they like."""

    @initialize(limits=LIMITS)
    def start(self, limits: Limits) -> None:
        self.limits = limits
        self.pool, self.slots, self.scheduler = limits.build()
        self.model = FakeModel(self.pool)
        self.live: list[RequestState] = []

    @rule(
        prompt=PROMPTS,
        max_new_tokens=st.integers(1, 12),
        adapter=st.sampled_from([None, None, "a", "b", "c", "d", BROKEN]),
        tenant=TENANTS,
        count=st.sampled_from([1, 1, 1, 6]),
    )
    def submit(self, prompt: list[int], max_new_tokens: int, adapter: str | None, tenant: str, count: int) -> None:
        prompt = prompt[: self.limits.capacity]
        max_new_tokens = min(max_new_tokens, self.limits.capacity - len(prompt) + 1)
        num_prefetches = self.slots.num_prefetches
        for _ in range(count):
            self.live.append(self.scheduler.add(make_request(prompt, max_new_tokens, adapter, tenant)))
        assert self.slots.num_prefetches - num_prefetches == (count if adapter else 0)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        state = data.draw(st.sampled_from(self.live))
        self.live.remove(state)
        self.scheduler.remove(state)

    @rule()
    def finish_loading(self) -> None:
        self.slots.finish_loading()

    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.one_step()
            self.blocks_are_conserved()

    def one_step(self) -> None:
        batch = self.scheduler.schedule()
        self.check_batch(batch)
        for state, _ in batch.failures:
            assert state.flow.waiting
            assert state.request.adapter
            assert state.request.adapter.digest == BROKEN
            self.live.remove(state)
            self.scheduler.remove(state)
        self.model.run(batch)
        self.scheduler.advance(batch)
        for chunk in batch.chunks:
            state = chunk.state
            assert state.num_computed == chunk.stop
            if chunk.is_last:
                state.token_ids.append(next_token(state.request, state.token_ids))
            if is_done(state):
                assert state.token_ids == expected_tokens(state.request)
                self.live.remove(state)
                self.scheduler.remove(state)

    def check_batch(self, batch: ScheduledBatch) -> None:
        assert batch.num_tokens <= self.limits.max_batch_tokens
        assert len(batch.chunks) <= self.limits.max_num_requests
        order = [(chunk.state.slot, chunk.stop - chunk.start > 1) for chunk in batch.chunks]
        assert order == sorted(order)
        states = [chunk.state for chunk in batch.chunks]
        assert len(set(map(id, states))) == len(states)
        for chunk in batch.chunks:
            state = chunk.state
            assert state.is_running
            assert state.num_computed == chunk.start < chunk.stop <= len(state.token_ids)
            assert len(state.block_ids) * self.limits.block_size >= chunk.stop
            adapter = state.request.adapter
            assert state.slot == (BASE_SLOT if adapter is None else self.slots.slots[adapter.digest])

    @invariant()
    def blocks_are_conserved(self) -> None:
        if not hasattr(self, "pool"):
            return
        held = Counter(block_id for state in self.live for block_id in state.block_ids)
        assert [held[block_id] for block_id in range(self.limits.num_blocks)] == self.pool._num_holders
        assert sorted([*held, *self.pool._free, *self.pool._idle]) == list(range(self.limits.num_blocks))
        assert {block_id: key for key, block_id in self.pool._block_of.items()} == self.pool._key_of
        assert set(self.pool._idle) == set(self.pool._key_of) - set(held)
        assert self.pool.num_free == self.limits.num_blocks - len(held)
        assert all(state.is_running or not state.block_ids for state in self.live)
        if not self.limits.prefix_cache:
            assert self.pool.num_cached == 0
            assert set(held.values()) <= {1}

    @invariant()
    def pins_are_conserved(self) -> None:
        if not hasattr(self, "pool"):
            return
        users = [state.request.adapter.digest for state in self.scheduler.running if state.request.adapter]
        assert {digest: pins for digest, pins in self.slots.pins.items() if pins} == {
            digest: users.count(digest) for digest in users
        }

    @invariant()
    def everybody_is_somewhere_once(self) -> None:
        if not hasattr(self, "pool"):
            return
        flows = {state.flow for state in self.live}
        waiting = [state for flow in flows for state in flow.waiting]
        assert sorted(map(id, [*waiting, *self.scheduler.running])) == sorted(map(id, self.live))
        assert self.scheduler.num_waiting == len(waiting)
        for flow in flows:
            arrivals = [state.arrival for state in flow.waiting]
            assert arrivals == sorted(arrivals)
            assert flow.num_running == len(flow.running) == sum(s.flow is flow for s in self.scheduler.running)
            assert flow.num_requests == sum(state.flow is flow for state in self.live)

    def teardown(self) -> None:
        """Whatever happened: if loading goes on, everybody who is left comes to an end."""
        if not hasattr(self, "pool"):
            return
        for _ in range(10_000):
            if not self.live:
                break
            self.slots.finish_loading()
            self.one_step()
        assert not self.live, "starved"
        assert self.pool.num_free == self.limits.num_blocks


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(
    jobs=st.lists(st.tuples(PROMPTS, st.integers(1, 8), st.sampled_from([None, "a", "b"]), TENANTS), max_size=8),
    limits=LIMITS,
)
@settings(max_examples=50, deadline=None)
def test_with_and_without_the_cache_the_same_tokens_come(
    jobs: list[tuple[list[int], int, str | None, str]], limits: Limits
) -> None:
    """The cache saves work, is never asked for a prompt's last token, and nothing else changes."""
    for prefix_cache in (False, True):
        limits.prefix_cache = prefix_cache
        pool, _, scheduler = limits.build(is_instant=True)
        states = []
        for prompt, num_new, adapter, tenant in jobs:
            fitting = prompt[: limits.capacity]
            num_new = min(num_new, limits.capacity - len(fitting) + 1)
            states.append(scheduler.add(make_request(fitting, num_new, adapter, tenant)))
        while scheduler.running or scheduler.num_waiting:
            run_one_step(scheduler)
        assert [state.token_ids for state in states] == [expected_tokens(state.request) for state in states]
        assert all(state.num_cached_tokens < state.num_prompt_tokens for state in states)
        assert sum(state.num_cached_tokens for state in states) == scheduler.num_prefix_tokens_found
        assert bool(pool.num_cached) <= prefix_cache


@given(num_tokens=st.integers(0, 1000), block_size=st.integers(1, 64))
def test_blocks_needed(num_tokens: int, block_size: int) -> None:
    needed = BlockPool(1, block_size).num_needed(num_tokens)
    assert needed * block_size >= num_tokens > (needed - 1) * block_size or needed == num_tokens == 0
