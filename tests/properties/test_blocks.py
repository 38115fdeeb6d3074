"""Blocks and slots are conserved, the budget holds and nobody starves, under random schedules and without a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atoll.adapters.routing import BASE_SLOT
from atoll.adapters.store import StoredAdapter
from atoll.engine.blocks import BlockPool
from atoll.engine.request import Request, SamplingParams
from atoll.engine.scheduler import RequestState, ScheduledBatch, Scheduler
from atoll.errors import AdapterInvalid

BROKEN = "broken"
ADAPTERS = {
    name: StoredAdapter(name=name, revision=1, digest=name, folder=Path(), contract=None)
    for name in ("a", "b", "c", "d", BROKEN)
}


class ScriptedSlots:
    """Slots whose loading the test commands: an adapter is ready once `finish_loading` was called for it."""

    def __init__(self, num_slots: int, *, is_instant: bool = False) -> None:
        self.num_slots = num_slots
        self.is_instant = is_instant
        self.wanted: set[str] = set()
        self.ready: set[str] = set()
        self.slots: dict[str, int] = {}
        self.pins: dict[str, int] = {}

    def acquire(self, adapter: StoredAdapter) -> int | None:
        digest = adapter.digest
        if digest == BROKEN:
            raise AdapterInvalid("broken")
        if digest not in self.slots:
            self.wanted.add(digest)
            if not (self.is_instant or digest in self.ready) or not self._make_room():
                return None
            free = set(range(self.num_slots)) - set(self.slots.values())
            self.slots[digest] = min(free)
            self.pins[digest] = 0
            self.wanted.discard(digest)
            self.ready.discard(digest)
        self.pins[digest] += 1
        return self.slots[digest]

    def release(self, digest: str) -> None:
        self.pins[digest] -= 1
        assert self.pins[digest] >= 0, "released more often than acquired"

    def finish_loading(self) -> None:
        self.ready |= self.wanted

    def _make_room(self) -> bool:
        if len(self.slots) < self.num_slots:
            return True
        for digest, pins in self.pins.items():
            if pins == 0 and digest in self.slots:
                del self.slots[digest], self.pins[digest]
                return True
        return False


@dataclass
class Limits:
    num_blocks: int
    block_size: int
    num_slots: int
    max_batch_tokens: int
    max_num_requests: int
    max_overtakers: int = 4

    def build(self, *, is_instant: bool = False) -> tuple[BlockPool, ScriptedSlots, Scheduler]:
        pool = BlockPool(self.num_blocks, self.block_size)
        slots = ScriptedSlots(self.num_slots, is_instant=is_instant)
        scheduler = Scheduler(
            pool,
            slots,
            num_slots=self.num_slots,
            max_batch_tokens=self.max_batch_tokens,
            max_num_requests=self.max_num_requests,
            max_overtakers=self.max_overtakers,
        )
        return pool, slots, scheduler

    @property
    def capacity(self) -> int:
        return self.num_blocks * self.block_size


LIMITS = st.builds(
    Limits,
    num_blocks=st.integers(2, 12),
    block_size=st.integers(1, 4),
    num_slots=st.integers(1, 3),
    max_batch_tokens=st.integers(1, 16),
    max_num_requests=st.integers(1, 6),
)


def make_request(num_prompt_tokens: int, max_new_tokens: int, adapter: str | None) -> Request:
    return Request(
        prompt_ids=tuple(range(num_prompt_tokens)),
        sampling=SamplingParams(max_new_tokens=max_new_tokens),
        adapter=ADAPTERS[adapter] if adapter else None,
    )


class Schedules(RuleBasedStateMachine):
    """Requests come, run, grow, abort and finish in any order; adapters load whenever they like."""

    @initialize(limits=LIMITS)
    def start(self, limits: Limits) -> None:
        self.limits = limits
        self.pool, self.slots, self.scheduler = limits.build()
        self.live: list[RequestState] = []
        self.batch: ScheduledBatch | None = None

    @rule(
        num_prompt_tokens=st.integers(1, 20),
        max_new_tokens=st.integers(1, 12),
        adapter=st.sampled_from([None, *ADAPTERS]),
    )
    def submit(self, num_prompt_tokens: int, max_new_tokens: int, adapter: str | None) -> None:
        num_prompt_tokens = min(num_prompt_tokens, self.limits.capacity)
        max_new_tokens = min(max_new_tokens, self.limits.capacity - num_prompt_tokens + 1)
        self.live.append(self.scheduler.add(make_request(num_prompt_tokens, max_new_tokens, adapter)))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        state = data.draw(st.sampled_from(self.live))
        self.live.remove(state)
        self.scheduler.remove(state)

    @rule()
    def finish_loading(self) -> None:
        self.slots.finish_loading()

    @rule()
    def step(self) -> None:
        batch = self.scheduler.schedule()
        self.check_batch(batch)
        for state, _ in batch.failures:
            assert state.request.adapter is ADAPTERS[BROKEN]
            self.live.remove(state)
            self.scheduler.remove(state)
        self.scheduler.advance(batch)
        for chunk in batch.chunks:
            if chunk.is_last:
                chunk.state.token_ids.append(0)
            if (
                len(chunk.state.token_ids)
                == chunk.state.num_prompt_tokens + chunk.state.request.sampling.max_new_tokens
            ):
                self.live.remove(chunk.state)
                self.scheduler.remove(chunk.state)

    def check_batch(self, batch: ScheduledBatch) -> None:
        assert batch.num_tokens <= self.limits.max_batch_tokens
        assert len(batch.chunks) <= self.limits.max_num_requests
        slots = [chunk.state.slot for chunk in batch.chunks]
        assert slots == sorted(slots)
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
        held = [block_id for state in self.live for block_id in state.block_ids]
        assert len(set(held)) == len(held), "two requests share a block"
        assert len(held) + self.pool.num_free == self.limits.num_blocks
        assert all(not state.block_ids for state in self.scheduler.waiting)

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
        queued = [*self.scheduler.waiting, *self.scheduler.running]
        assert sorted(map(id, queued)) == sorted(map(id, self.live))
        arrivals = [state.arrival for state in self.scheduler.waiting]
        assert arrivals == sorted(arrivals)

    def teardown(self) -> None:
        """Whatever happened: if loading goes on, everybody who is left comes to an end."""
        if not hasattr(self, "pool"):
            return
        for _ in range(10_000):
            if not self.live:
                break
            self.slots.finish_loading()
            self.step()
        assert not self.live, "starved"
        assert self.pool.num_free == self.limits.num_blocks


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def run_one_step(scheduler: Scheduler) -> set[int]:
    """One step; returns the arrivals of the requests that finished with it."""
    batch = scheduler.schedule()
    scheduler.advance(batch)
    finished = set()
    for chunk in batch.chunks:
        if chunk.is_last:
            chunk.state.token_ids.append(0)
        if len(chunk.state.token_ids) == chunk.state.num_prompt_tokens + chunk.state.request.sampling.max_new_tokens:
            scheduler.remove(chunk.state)
            finished.add(chunk.state.arrival)
    return finished


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


def test_lack_of_blocks_holds_back_those_behind() -> None:
    """A small request may not pass a big one for ever."""
    limits = Limits(num_blocks=8, block_size=4, num_slots=1, max_batch_tokens=64, max_num_requests=8)
    _, _, scheduler = limits.build()
    scheduler.add(make_request(12, 4, None))
    run_one_step(scheduler)
    big = scheduler.add(make_request(24, 2, None))
    small = scheduler.add(make_request(1, 1, None))
    run_one_step(scheduler)
    assert not big.is_running
    assert not small.is_running


def test_the_youngest_is_preempted_and_the_oldest_never() -> None:
    limits = Limits(num_blocks=4, block_size=2, num_slots=1, max_batch_tokens=16, max_num_requests=4)
    pool, _, scheduler = limits.build()
    old, young = (scheduler.add(make_request(2, 6, None)) for _ in range(2))
    run_one_step(scheduler)
    while not scheduler.num_preemptions:
        assert old.is_running
        run_one_step(scheduler)
    assert old.is_running
    assert not young.is_running
    assert young.num_computed == 0
    assert len(young.token_ids) > 2, "what was generated is kept"
    while scheduler.running or scheduler.waiting:
        run_one_step(scheduler)
    assert len(young.token_ids) == len(old.token_ids) == 8
    assert pool.num_free == 4


def test_a_newcomer_leaves_a_block_to_those_who_run() -> None:
    """Else it would be preempted as soon as one of them needs its next block."""
    limits = Limits(num_blocks=4, block_size=2, num_slots=1, max_batch_tokens=16, max_num_requests=4)
    _, _, scheduler = limits.build()
    scheduler.add(make_request(3, 3, None))
    newcomer = scheduler.add(make_request(4, 2, None))
    while not newcomer.is_running:
        run_one_step(scheduler)
    assert scheduler.num_preemptions == 0
    assert list(scheduler.running) == [newcomer]


def test_one_broken_adapter_fails_all_its_requests_at_once_and_no_other() -> None:
    limits = Limits(num_blocks=64, block_size=4, num_slots=1, max_batch_tokens=32, max_num_requests=8)
    _, _, scheduler = limits.build(is_instant=True)
    broken = [scheduler.add(make_request(2, 2, BROKEN)) for _ in range(3)]
    well = scheduler.add(make_request(2, 2, "a"))
    batch = scheduler.schedule()
    assert [state for state, _ in batch.failures] == broken
    assert [chunk.state for chunk in batch.chunks] == [well]


def test_a_block_cannot_be_released_twice() -> None:
    pool = BlockPool(4, 16)
    block_ids = pool.allocate(2)
    pool.release(block_ids)
    with pytest.raises(RuntimeError, match="released twice"):
        pool.release(block_ids)
    with pytest.raises(RuntimeError, match="5 blocks wanted, 4 free"):
        pool.allocate(5)


@given(num_tokens=st.integers(0, 1000), block_size=st.integers(1, 64))
def test_blocks_needed(num_tokens: int, block_size: int) -> None:
    needed = BlockPool(1, block_size).num_needed(num_tokens)
    assert needed * block_size >= num_tokens > (needed - 1) * block_size or needed == num_tokens == 0
