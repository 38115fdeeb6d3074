"""Who makes room: which running requests give up their places and blocks for one that has not run yet.

A flood may have taken all places or all blocks before anybody else came. So a request that waits for its first turn may
take them from flows behind its own that hold clearly more. As each request does so at most once, whatever is preempted
comes to its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from atoll.engine.accounts import Account
from atoll.engine.blocks import BlockPool
from atoll.engine.fairness import FairQueue
from atoll.engine.state import Flow, RequestState, Tenant

# What somebody who asks for much must run more than somebody who asks for little: then both do not just trade places.
_CLEAR_EXCESS = 2


def claimants(queue: FairQueue) -> Iterator[Flow]:
    """Flows whose first waiting request may take a place from others; a quick look that lets some more pass."""
    most: dict[Tenant, int] = {}
    for state in queue.running:
        tenant = state.flow.tenant
        most[tenant] = max(most.get(tenant, 0), state.flow.num_running)
    most_of_tenants = max(tenant.num_running for tenant in most)
    for flow in queue.flows_with_waiting():
        excess = max(most_of_tenants - flow.tenant.num_running, most.get(flow.tenant, 0) - flow.num_running)
        if flow.waiting[0].was_admitted or excess < _CLEAR_EXCESS:
            continue
        if excess >= _excess_among_equals(queue) or not queue.is_heavy(flow):
            yield flow


def victim_for_place(queue: FairQueue, state: RequestState) -> RequestState | None:
    """The running request that leaves its place to `state`; None where nobody has to."""
    if state.was_admitted:
        return None
    is_light = not queue.is_heavy(state.flow)
    for flow in queue.flows_behind(state.flow):
        theirs, ours = _compared(flow, state.flow)
        needed = _CLEAR_EXCESS if is_light and queue.is_heavy(flow) else _excess_among_equals(queue)
        if theirs.num_running - ours.num_running >= needed:
            return flow.running[-1]
    return None


def victims_for_blocks(
    queue: FairQueue, pool: BlockPool, state: RequestState, num_blocks: int, first: RequestState | None
) -> list[RequestState] | None:
    """Running requests that have to go so that `state` gets `num_blocks`; None where that cannot be.

    Each request that stays keeps one block in reserve, else the newcomer would soon be preempted again. No party gives
    so much that it is left with less than the other gets. first: a request that leaves its place already.
    """
    victims = [first] if first else []
    if _suffices(queue, pool, num_blocks, victims):
        return victims
    if state.was_admitted:
        return None
    held: Counter[Account] = Counter()
    for other in queue.running:
        held[other.flow] += len(other.block_ids)
        held[other.flow.tenant] += len(other.block_ids)
    for flow in queue.flows_behind(state.flow):
        theirs, ours = _compared(flow, state.flow)
        for victim in reversed(flow.running):
            if held[theirs] < held[ours] + num_blocks:
                break
            if victim is not first:
                victims.append(victim)
            held[flow] -= len(victim.block_ids)
            held[flow.tenant] -= len(victim.block_ids)
            if _suffices(queue, pool, num_blocks, victims):
                return victims
    return None


def _suffices(queue: FairQueue, pool: BlockPool, num_blocks: int, victims: Sequence[RequestState]) -> bool:
    num_free = pool.num_free + sum(pool.num_sole(victim.block_ids) for victim in victims)
    return num_blocks == 0 or num_free - (len(queue.running) - len(victims)) >= num_blocks


def _excess_among_equals(queue: FairQueue) -> int:
    """What a party must run more than another one that asks for as much: those about even would only trade places."""
    return 2 + queue.num_places // 8


def _compared(theirs: Flow, ours: Flow) -> tuple[Account, Account]:
    """The parties that share: two flows of one tenant, or else their tenants."""
    return (theirs, ours) if theirs.tenant is ours.tenant else (theirs.tenant, ours.tenant)
