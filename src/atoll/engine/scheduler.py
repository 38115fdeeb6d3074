"""Decides what every step computes, and owns blocks and slots; it never touches a tensor.

There is no prefill phase and no decode phase: a request has tokens (its prompt, then what was generated) and a number
of them that are computed, and every step lets that number catch up under one token budget. A new prompt takes many
tokens of the budget, a running completion one, a preempted request starts again with what the prefix cache kept.
"""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from atoll.adapters.routing import BASE_SLOT
from atoll.engine.blocks import BlockPool
from atoll.engine.fairness import Charge, FairQueue, Turns
from atoll.engine.preemption import claimants, victim_for_place, victims_for_blocks
from atoll.engine.prefix import extend_keys, root_key
from atoll.engine.request import Request
from atoll.engine.state import Chunk, Flow, RequestState, ScheduledBatch
from atoll.errors import AtollError

if TYPE_CHECKING:
    from atoll.adapters.store import StoredAdapter

logger = logging.getLogger(__name__)

# A flow may be ahead of its even share by the tokens of so many full steps, and behind it by as many.
WINDOW_STEPS = 8


class SlotTable(Protocol):
    """Where the scheduler gets slots from: adapters.residency in the engine."""

    @property
    def pinned(self) -> frozenset[str]:
        """Digests of the adapters whose slots nobody else gets."""

    def prefetch(self, adapter: StoredAdapter) -> None:
        """Note that a request for the adapter is queued. Never blocks."""

    def acquire(self, adapter: StoredAdapter) -> int | None:
        """Pin the adapter and return its slot; None while it loads or every slot is pinned. Never blocks."""

    def release(self, digest: str) -> None:
        """Take one pin away."""


@dataclass(slots=True)
class _Step:
    """One step while it is put together. passed: requests that found no slot; is_full: blocks ran out for newcomers."""

    budget: int
    chunks: dict[RequestState, Chunk] = field(default_factory=dict)
    charges: dict[RequestState, Charge] = field(default_factory=dict)
    failures: list[tuple[RequestState, AtollError]] = field(default_factory=list)
    prefilling: dict[Flow, deque[RequestState]] = field(default_factory=dict)
    absent: dict[str, AtollError | None] = field(default_factory=dict)
    passed: list[RequestState] = field(default_factory=list)
    claimants: dict[Flow, None] | None = None
    is_full: bool = False


class Scheduler:
    """Fair between tenants and adapters, under a token budget, a number of places and a pool of blocks.

    - Requests that generate go first, with one token each. When blocks run out, the newest request of the flow that has
      got the most above its share is preempted: it gives up its blocks and its slot and computes again later what the
      prefix cache has lost by then (same output).
    - Prompts share what is left of the budget, and waiting requests are admitted, in the order of engine.fairness; a
      request that never ran may preempt others (engine.preemption). Lack of blocks holds back everyone behind; a
      request whose adapter is not on the device is overtaken by the others.
    - A request without a slot is overtaken at most `max_overtakers` times by others with an adapter. From then on they
      pass only as long as one slot stays idle for it.

    num_slots: adapters that can be on the device at once. prefix_cache: find full blocks of earlier requests.
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
        prefix_cache: bool = True,
    ) -> None:
        self.num_preemptions = 0
        self.num_prefix_tokens = 0
        self.num_prefix_tokens_found = 0
        self._pool = pool
        self._slots = slots
        self._num_slots = num_slots
        self._max_batch_tokens = max_batch_tokens
        self._max_overtakers = max_overtakers
        self._prefix_cache = prefix_cache
        self._queue = FairQueue(num_places=max_num_requests, window=WINDOW_STEPS * max_batch_tokens)

    @property
    def running(self) -> Sequence[RequestState]:
        """By admission."""
        return self._queue.running

    @property
    def num_waiting(self) -> int:
        return self._queue.num_waiting

    @property
    def running_by_adapter(self) -> Mapping[str, int]:
        """Running requests by the adapter's name, empty for the bare base."""
        return self._queue.running_by_adapter

    @property
    def waiting_by_adapter(self) -> Mapping[str, int]:
        """The same of those that wait."""
        return self._queue.waiting_by_adapter

    def add(self, request: Request) -> RequestState:
        """Queue a request. The caller has checked that it fits into the block pool when it is alone."""
        if request.adapter is not None:  # first: if it fails, nothing is left behind
            self._slots.prefetch(request.adapter)
        return self._queue.add(request)

    def remove(self, state: RequestState) -> None:
        """Forget a request that finished, failed or was aborted, and take back what it holds."""
        self._queue.remove(state)
        self._take_back(state)

    def schedule(self) -> ScheduledBatch:
        """Choose the next step's tokens."""
        step = _Step(self._max_batch_tokens)
        self._continue_running(step)
        self._give_turns(step)
        chunks = sorted(step.chunks.values(), key=lambda chunk: (chunk[0].slot, chunk[2] - chunk[1] > 1))
        return ScheduledBatch(chunks, step.failures)

    def advance(self, batch: ScheduledBatch) -> None:
        """Note that a batch was computed; blocks that it filled can be found from now on."""
        size = self._pool.block_size
        for state, start, stop in batch.chunks:
            state.num_computed = stop
            if self._prefix_cache and stop // size > start // size:
                keys = self._keys(state, stop // size)
                for index in range(start // size, stop // size):
                    self._pool.keep(state.block_ids[index], keys[index + 1])

    def _continue_running(self, step: _Step) -> None:
        """Give those who generate their tokens, and note who is still in the middle of a prompt."""
        size = self._pool.block_size
        for state in list(self._queue.running):
            if step.budget == 0:
                break
            length = len(state.token_ids)
            # Those behind this one may be preempted here, at last the request itself.
            while state.is_running and length > len(state.block_ids) * size:
                if self._pool.num_free:
                    state.block_ids.extend(self._pool.allocate(1))
                else:
                    self._preempt(victim := self._queue.last_flow().running[-1], step)
                    logger.warning("no KV block is free: request %s is preempted", victim.request.request_id)
            if not state.is_running:
                continue
            if length - state.num_computed == 1:
                self._compute(state, step)
            else:
                step.prefilling.setdefault(state.flow, deque()).append(state)

    def _give_turns(self, step: _Step) -> None:
        """Share the rest of the budget between prompts that are under way and requests that wait."""
        waiting = self._queue.flows_with_waiting() if self._queue.has_place else self._claimants(step)
        turns = Turns(self._queue, dict.fromkeys([*step.prefilling, *waiting]))
        has_light_prompt = False
        budget_of_heavy: int | None = None
        while step.budget and (flow := turns.take()):
            budget, kept_back = step.budget, 0
            is_heavy = self._queue.is_heavy(flow)
            if is_heavy:
                if budget_of_heavy is None:
                    budget_of_heavy = self._budget_of_heavy(has_light_prompt)
                kept_back = max(0, budget - budget_of_heavy)
            step.budget -= kept_back
            turns.end_turn(flow, comes_again=step.budget > 0 and self._serve(flow, step))
            step.budget += kept_back
            if budget_of_heavy is not None and is_heavy:
                budget_of_heavy -= budget - step.budget
            has_light_prompt |= not is_heavy and step.budget < budget

    def _claimants(self, step: _Step) -> dict[Flow, None]:
        """The flows that may take a place now that all are taken; looked for once a step."""
        if step.claimants is None:
            step.claimants = dict.fromkeys(claimants(self._queue))
        return step.claimants

    def _budget_of_heavy(self, has_light_prompt: bool) -> int:
        """What flows that ask for much may add to this step, so that those who ask for little find short steps.

        A new request waits for the end of the step under way and for that of its own: in time and not in steps, its
        first token comes late where a flood fills them. Small chunks cost the flood little.
        """
        if has_light_prompt:
            return max(1, self._max_batch_tokens // 32)
        if all(self._queue.is_heavy(flow) for flow in {state.flow for state in self._queue.running}):
            return self._max_batch_tokens
        return max(1, self._max_batch_tokens // 8)

    def _serve(self, flow: Flow, step: _Step) -> bool:
        """Give one request of the flow its turn, in order of arrival; returns whether the flow wants another turn."""
        if prompts := step.prefilling.get(flow):
            state = prompts.popleft()
            if state.is_running:
                self._compute(state, step)
            return bool(prompts or flow.waiting)
        return bool(flow.waiting) and self._admit(flow.waiting[0], step) and bool(flow.waiting)

    def _admit(self, state: RequestState, step: _Step) -> bool:
        """Let a waiting request run, if it gets a place, a slot and blocks."""
        leaving = None
        if not self._queue.has_place and state.flow in self._claimants(step):
            leaving = victim_for_place(self._queue, state)
        if step.is_full or not (self._queue.has_place or leaving) or not self._find_slot(state, step):
            return False
        if not self._find_blocks(state, step, leaving):
            self._take_back(state)
            step.is_full = True
            return False
        self._queue.admit(state)
        self._compute(state, step)
        if state.slot != BASE_SLOT:
            for other in step.passed:
                other.num_overtakers += 1
        return True

    def _find_slot(self, state: RequestState, step: _Step) -> bool:
        adapter = state.request.adapter
        if adapter is None:
            return True
        if not self._may_pass(adapter, step):
            return False
        slot = self._acquire(adapter, step)
        if isinstance(slot, AtollError):
            step.failures += [(other, slot) for other in state.flow.waiting]
        elif slot is None:
            step.passed.append(state)
        else:
            state.slot = slot
        return isinstance(slot, int)

    def _acquire(self, adapter: StoredAdapter, step: _Step) -> int | AtollError | None:
        """Pin an adapter and return its slot, or why there is none; each absent adapter is asked for once a step."""
        if adapter.digest in step.absent:
            return step.absent[adapter.digest]
        slot: int | AtollError | None
        try:
            slot = self._slots.acquire(adapter)
        except AtollError as error:
            slot = error
        if not isinstance(slot, int):
            step.absent[adapter.digest] = slot
        return slot

    def _may_pass(self, adapter: StoredAdapter, step: _Step) -> bool:
        """Whether a request for this adapter may overtake those that found no slot: one slot stays idle for them."""
        if all(other.num_overtakers < self._max_overtakers for other in step.passed):
            return True
        in_use = {other.request.adapter.digest for other in self._queue.running if other.request.adapter}
        return len(in_use | self._slots.pinned | {adapter.digest}) < self._num_slots

    def _find_blocks(self, state: RequestState, step: _Step, leaving: RequestState | None) -> bool:
        """Give a waiting request blocks for all tokens that it has now, those of a known prefix first."""
        size = self._pool.block_size
        # At least the last token is computed: its logits are what the request waits for.
        num_full = (len(state.token_ids) - 1) // size
        may_share = self._prefix_cache and not state.request.needs_whole_prompt
        found = self._pool.share(self._keys(state, num_full)[1 : 1 + num_full]) if may_share else []
        state.block_ids.extend(found)
        num_missing = self._pool.num_needed(len(state.token_ids)) - len(found)
        victims = victims_for_blocks(self._queue, self._pool, state, num_missing, leaving)
        if victims is None:
            return False
        for victim in victims:
            self._preempt(victim, step)
            logger.info("request %s is preempted for %s", victim.request.request_id, state.request.request_id)
        state.block_ids.extend(self._pool.allocate(num_missing))
        state.num_computed = len(found) * size
        if may_share and not state.was_admitted:
            state.num_cached_tokens = state.num_computed
            self.num_prefix_tokens += len(state.token_ids)
            self.num_prefix_tokens_found += state.num_computed
        return True

    def _keys(self, state: RequestState, num_blocks: int) -> list[bytes]:
        """The root key, then the keys of the request's first blocks: `num_blocks` of them, or more."""
        if not state.block_keys:
            adapter = state.request.adapter
            state.block_keys.append(root_key(state.request.tenant, adapter.digest if adapter else None))
        extend_keys(state.block_keys, state.token_ids, block_size=self._pool.block_size, num_blocks=num_blocks)
        return state.block_keys

    def _compute(self, state: RequestState, step: _Step) -> None:
        """Add the request's next tokens to the step."""
        start = state.num_computed
        stop = min(len(state.token_ids), start + step.budget)
        step.chunks[state] = Chunk(state, start, stop)
        step.budget -= stop - start
        step.charges[state] = self._queue.charge(state.flow, stop - start)

    def _preempt(self, state: RequestState, step: _Step) -> None:
        """Send a running request back to its place among the waiting."""
        if charge := step.charges.pop(state, None):
            del step.chunks[state]
            step.budget += charge.num_tokens
            self._queue.take_back(state.flow, charge)
        self._queue.send_back(state)
        self._take_back(state)
        self.num_preemptions += 1

    def _take_back(self, state: RequestState) -> None:
        self._pool.release(state.block_ids)
        state.block_ids = array("i")
        state.num_computed = 0
        adapter = state.request.adapter
        if adapter is not None and state.slot != BASE_SLOT:
            self._slots.release(adapter.digest)
            state.slot = BASE_SLOT
