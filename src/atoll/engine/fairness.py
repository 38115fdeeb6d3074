"""Whose turn it is: requests in flows, by tenant and adapter, and the order in which flows are served.

Inside a flow it is first come, first served, and a tenant's more urgent requests go before its others. Between the
adapters of a tenant, and above them between tenants, tokens are shared evenly (engine.accounts).
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable
from itertools import count
from typing import NamedTuple

from atoll.engine.accounts import Ledger, Rank
from atoll.engine.request import Request
from atoll.engine.state import Flow, RequestState, Tenant


def _line(state: RequestState) -> tuple[int, int]:
    """A request's place in its flow: by priority, then first come, first served."""
    return state.request.priority, state.arrival


def _count(by_adapter: dict[str, int], state: RequestState, change: int) -> None:
    name = state.request.adapter.name if state.request.adapter else ""
    number = by_adapter.get(name, 0) + change
    if number:
        by_adapter[name] = number
    else:
        del by_adapter[name]


class Charge(NamedTuple):
    """Tokens of one flow, and what they added to the accounts of its tenant and of itself."""

    num_tokens: int
    of_tenant: float
    of_flow: float


class FairQueue:
    """All requests of the engine, waiting and running.

    num_places: requests that can run at once. window: tokens that a flow can be ahead of its share or behind it.
    """

    def __init__(self, *, num_places: int, window: int) -> None:
        self.running: list[RequestState] = []  # by admission
        self.num_waiting = 0
        self.running_by_adapter: dict[str, int] = {}  # by name, empty for the bare base; only those that have any
        self.waiting_by_adapter: dict[str, int] = {}
        self.num_places = num_places
        self._window = window
        self._tenants: Ledger[Tenant] = Ledger(window)
        self._num_arrived = 0

    @property
    def has_place(self) -> bool:
        return len(self.running) < self.num_places

    def add(self, request: Request) -> RequestState:
        """Let a new request wait at the end of its flow."""
        tenant = self._tenants.enter(request.tenant, lambda: Tenant(flows=Ledger(self._window)))
        digest = request.adapter.digest if request.adapter else None
        flow = tenant.flows.enter(digest, lambda: Flow(tenant=tenant))
        state = RequestState(request=request, arrival=self._num_arrived, flow=flow, token_ids=list(request.prompt_ids))
        self._num_arrived += 1
        self._wait(state)
        return state

    def admit(self, state: RequestState) -> None:
        """Let a waiting request run."""
        self._stop_waiting(state)
        self.running.append(state)
        _count(self.running_by_adapter, state, 1)
        state.flow.running.append(state)
        state.is_running = state.was_admitted = True
        self._count_running(state.flow, 1)

    def send_back(self, state: RequestState) -> None:
        """Let a running request wait again, at its old place."""
        self._stop_running(state)
        self._wait(state)

    def remove(self, state: RequestState) -> None:
        """Forget a request."""
        if state.is_running:
            self._stop_running(state)
        else:
            self._stop_waiting(state)
        state.flow.tenant.flows.leave(state.flow)
        self._tenants.leave(state.flow.tenant)

    def charge(self, flow: Flow, num_tokens: int) -> Charge:
        """Note tokens that are computed for a flow."""
        tenant = flow.tenant
        return Charge(num_tokens, self._tenants.charge(tenant, num_tokens), tenant.flows.charge(flow, num_tokens))

    def take_back(self, flow: Flow, charge: Charge) -> None:
        """Undo a charge of this step: its tokens are not computed after all."""
        self._tenants.take_back(flow.tenant, charge.num_tokens, charge.of_tenant)
        flow.tenant.flows.take_back(flow, charge.num_tokens, charge.of_flow)

    def rank(self, flow: Flow) -> tuple[Rank, tuple[int, Rank]]:
        """The order of flows: first by tenant."""
        return self.rank_tenant(flow.tenant), self.rank_in_tenant(flow)

    def rank_tenant(self, tenant: Tenant) -> Rank:
        """The order of tenants."""
        return self._tenants.rank(tenant, self.num_places)

    def rank_in_tenant(self, flow: Flow) -> tuple[int, Rank]:
        """The order of one tenant's flows: by the priority of their most urgent request, then by their shares."""
        urgent = min((state.request.priority for line in (flow.waiting[:1], flow.running) for state in line), default=0)
        return urgent, flow.tenant.flows.rank(flow, self._places_of_tenant())

    def is_heavy(self, flow: Flow) -> bool:
        """Whether the flow or its tenant asks for more than its share."""
        tenant = flow.tenant
        return self._tenants.is_heavy(tenant, self.num_places) or tenant.flows.is_heavy(flow, self._places_of_tenant())

    def last_flow(self) -> Flow:
        """The flow with a running request that has got the most above its share."""
        return max({state.flow: None for state in self.running}, key=self.rank)

    def flows_behind(self, flow: Flow) -> list[Flow]:
        """Those with a running request whose turn comes after `flow`, the last one first."""
        rank = self.rank(flow)
        ranks = {other: self.rank(other) for other in {state.flow: None for state in self.running}}
        return sorted((other for other in ranks if ranks[other] > rank), key=ranks.__getitem__, reverse=True)

    def flows_with_waiting(self) -> list[Flow]:
        """The flows that have a waiting request."""
        if self.num_waiting == 0:
            return []
        return [flow for tenant in self._tenants for flow in tenant.flows if flow.waiting]

    def _places_of_tenant(self) -> float:
        return min(self.num_places, self._tenants.share(self.num_places))

    def _wait(self, state: RequestState) -> None:
        insort(state.flow.waiting, state, key=_line)
        self.num_waiting += 1
        _count(self.waiting_by_adapter, state, 1)

    def _stop_waiting(self, state: RequestState) -> None:
        waiting = state.flow.waiting
        del waiting[bisect_left(waiting, _line(state), key=_line)]
        self.num_waiting -= 1
        _count(self.waiting_by_adapter, state, -1)

    def _stop_running(self, state: RequestState) -> None:
        self.running.remove(state)
        _count(self.running_by_adapter, state, -1)
        state.flow.running.remove(state)
        state.is_running = False
        self._count_running(state.flow, -1)

    def _count_running(self, flow: Flow, change: int) -> None:
        flow.num_running += change
        flow.tenant.num_running += change


class Turns:
    """The turns of one step: `take` the flow that is due, serve one of its requests, and `end_turn`."""

    def __init__(self, queue: FairQueue, flows: Iterable[Flow]) -> None:
        self._queue = queue
        self._order = count()  # between equals the one that was put in first
        by_tenant: dict[Tenant, list[tuple[tuple[int, Rank], int, Flow]]] = {}
        for flow in flows:
            entries = by_tenant.setdefault(flow.tenant, [])
            entries.append((queue.rank_in_tenant(flow), next(self._order), flow))
        self._flows = by_tenant
        self._tenants = [(queue.rank_tenant(tenant), next(self._order), tenant) for tenant in by_tenant]
        for entries in by_tenant.values():
            heapq.heapify(entries)
        heapq.heapify(self._tenants)

    def take(self) -> Flow | None:
        """The flow whose turn it is; None when all have ended."""
        if not self._tenants:
            return None
        tenant = heapq.heappop(self._tenants)[-1]
        return heapq.heappop(self._flows[tenant])[-1]

    def end_turn(self, flow: Flow, *, comes_again: bool) -> None:
        """Put the flow back at its new place if it `comes_again`."""
        entries = self._flows[flow.tenant]
        if comes_again:
            heapq.heappush(entries, (self._queue.rank_in_tenant(flow), next(self._order), flow))
        if entries:
            heapq.heappush(self._tenants, (self._queue.rank_tenant(flow.tenant), next(self._order), flow.tenant))
