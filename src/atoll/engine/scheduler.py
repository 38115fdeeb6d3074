"""Decides what every step computes, and owns blocks and slots; it never touches a tensor.

There is no prefill phase and no decode phase: a request has tokens (its prompt, then what was generated) and a number
of them that are computed, and every step lets that number catch up under one token budget. A new prompt takes many
tokens of the budget, a running completion one, a preempted request starts again from zero.
"""

from __future__ import annotations

import logging
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Protocol

from atoll.adapters.routing import BASE_SLOT
from atoll.engine.blocks import BlockPool
from atoll.engine.request import Request
from atoll.errors import AtollError

if TYPE_CHECKING:
    from atoll.adapters.store import StoredAdapter

logger = logging.getLogger(__name__)


class SlotTable(Protocol):
    """Where the scheduler gets slots from: adapters.residency in the engine."""

    def acquire(self, adapter: StoredAdapter) -> int | None:
        """Pin the adapter and return its slot; None while it loads or every slot is pinned. Never blocks."""

    def release(self, digest: str) -> None:
        """Take one pin away."""


@dataclass(slots=True, eq=False)
class RequestState:
    """A request on its way. The scheduler owns all of it except token_ids, to which the engine appends.

    num_computed: tokens whose keys and values are in the cache. arrival: its place in the order of submission.
    """

    request: Request
    arrival: int
    token_ids: list[int]
    num_computed: int = 0
    block_ids: list[int] = field(default_factory=list)
    slot: int = BASE_SLOT
    is_running: bool = False
    num_overtakers: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start` to `stop` (exclusive) of one request, computed in this step."""

    state: RequestState
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Whether all tokens are then computed, so that the next one can be sampled."""
        return self.stop == len(self.state.token_ids)


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """One step's work: chunks ordered by slot, and the requests whose adapter turned out to be unusable."""

    chunks: tuple[Chunk, ...] = ()
    failures: tuple[tuple[RequestState, AtollError], ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(chunk.stop - chunk.start for chunk in self.chunks)


class Scheduler:
    """First come, first served, under a token budget, a number of places and a pool of blocks.

    - Running requests go first, in the order in which they were admitted. When blocks run out, the request admitted
      last is preempted: it gives up its blocks and its slot and computes all its tokens again later (same output).
    - Waiting requests are admitted in order of arrival. Lack of blocks or places holds back everyone behind; a
      request whose adapter is not on the device is overtaken by the others.
    - A request that finds every slot busy is overtaken at most `max_overtakers` times. From then on no request with
      an adapter passes it, so that a slot falls idle.

    num_slots: adapters that can be on the device at once.
    """

    def __init__(
        self,
        pool: BlockPool,
        slots: SlotTable,
        *,
        num_slots: int,
        max_batch_tokens: int,
        max_num_requests: int,
        max_overtakers: int = 32,
    ) -> None:
        self.num_preemptions = 0
        self._pool = pool
        self._slots = slots
        self._num_slots = num_slots
        self._max_batch_tokens = max_batch_tokens
        self._max_num_requests = max_num_requests
        self._max_overtakers = max_overtakers
        self._waiting: list[RequestState] = []  # by arrival
        self._running: list[RequestState] = []  # by admission
        self._num_arrived = 0

    @property
    def waiting(self) -> Sequence[RequestState]:
        return self._waiting

    @property
    def running(self) -> Sequence[RequestState]:
        return self._running

    def add(self, request: Request) -> RequestState:
        """Queue a request. The caller has checked that it fits into the block pool when it is alone."""
        state = RequestState(request, self._num_arrived, list(request.prompt_ids))
        self._num_arrived += 1
        self._waiting.append(state)
        return state

    def remove(self, state: RequestState) -> None:
        """Forget a request that finished, failed or was aborted, and take back what it holds."""
        (self._running if state.is_running else self._waiting).remove(state)
        self._take_back(state)

    def schedule(self) -> ScheduledBatch:
        """Choose the next step's tokens."""
        chunks: list[Chunk] = []
        failures: list[tuple[RequestState, AtollError]] = []
        budget = self._continue_running(chunks)
        self._admit_waiting(chunks, failures, budget)
        chunks.sort(key=lambda chunk: chunk.state.slot)
        return ScheduledBatch(tuple(chunks), tuple(failures))

    def advance(self, batch: ScheduledBatch) -> None:
        """Note that a batch was computed."""
        for chunk in batch.chunks:
            chunk.state.num_computed = chunk.stop

    def _continue_running(self, chunks: list[Chunk]) -> int:
        """Give the running requests their tokens; returns the budget that is left."""
        budget = self._max_batch_tokens
        for state in list(self._running):
            if budget == 0:
                break
            # The requests behind this one may fall here, at last the request itself.
            while state.is_running and not self._has_blocks(state):
                self._preempt(self._running[-1])
            if state.is_running:
                budget -= self._compute(state, chunks, budget)
        return budget

    def _admit_waiting(self, chunks: list[Chunk], failures: list[tuple[RequestState, AtollError]], budget: int) -> None:
        absent: dict[str, AtollError | None] = {}
        passed: dict[str, RequestState] = {}
        is_draining = False
        for state in list(self._waiting):
            if budget == 0 or len(self._running) == self._max_num_requests:
                break
            adapter = state.request.adapter
            if adapter is not None:
                if is_draining:
                    continue
                slot = self._acquire(adapter, absent)
                if isinstance(slot, AtollError):
                    failures.append((state, slot))
                    continue
                if slot is None:
                    first = passed.setdefault(adapter.digest, state)
                    is_draining = first.num_overtakers >= self._max_overtakers
                    continue
                state.slot = slot
            # One spare block for each running request: else the newcomer would soon be preempted again.
            if not self._has_blocks(state, num_spare=len(self._running)):
                self._take_back(state)
                break
            self._waiting.remove(state)
            self._running.append(state)
            state.is_running = True
            budget -= self._compute(state, chunks, budget)
            if adapter is not None and self._are_slots_busy():
                for other in passed.values():
                    other.num_overtakers += 1

    def _acquire(self, adapter: StoredAdapter, absent: dict[str, AtollError | None]) -> int | AtollError | None:
        """Pin an adapter and return its slot, or why there is none; each absent adapter is asked for once a step."""
        if adapter.digest in absent:
            return absent[adapter.digest]
        slot: int | AtollError | None
        try:
            slot = self._slots.acquire(adapter)
        except AtollError as error:
            slot = error
        if not isinstance(slot, int):
            absent[adapter.digest] = slot
        return slot

    def _are_slots_busy(self) -> bool:
        return len({state.slot for state in self._running} - {BASE_SLOT}) == self._num_slots

    def _has_blocks(self, state: RequestState, *, num_spare: int = 0) -> bool:
        """Give the request blocks for all tokens that it has now; False if that would leave less than `num_spare`."""
        missing = self._pool.num_needed(len(state.token_ids)) - len(state.block_ids)
        if missing > max(0, self._pool.num_free - num_spare):
            return False
        state.block_ids += self._pool.allocate(missing)
        return True

    def _compute(self, state: RequestState, chunks: list[Chunk], budget: int) -> int:
        """Add the request's next tokens to the step; returns how many."""
        stop = min(len(state.token_ids), state.num_computed + budget)
        chunks.append(Chunk(state, state.num_computed, stop))
        return stop - state.num_computed

    def _preempt(self, state: RequestState) -> None:
        """Send a running request back to its place among the waiting."""
        self._running.remove(state)
        self._take_back(state)
        insort(self._waiting, state, key=attrgetter("arrival"))
        self.num_preemptions += 1
        logger.warning(
            "no KV block is free: request %s is preempted and computes its %d tokens again",
            state.request.request_id,
            len(state.token_ids),
        )

    def _take_back(self, state: RequestState) -> None:
        self._pool.release(state.block_ids)
        state.block_ids = []
        state.num_computed = 0
        state.is_running = False
        adapter = state.request.adapter
        if adapter is not None and state.slot != BASE_SLOT:
            self._slots.release(adapter.digest)
            state.slot = BASE_SLOT
