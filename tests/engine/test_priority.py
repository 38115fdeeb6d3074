"""Priorities order one tenant's own requests, and give it nothing of the others' share."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.engine.scheduler import Scheduler
from atoll.engine.state import RequestState
from support.scheduling import Limits, make_request, run_one_step

LIMITS = Limits(num_blocks=256, block_size=4, num_slots=4, max_batch_tokens=64, max_num_requests=1)


def add(scheduler: Scheduler, priority: int, adapter: str = "", tenant: str = "") -> RequestState:
    return scheduler.add(replace(make_request(4, 3, adapter, tenant), priority=priority))


def order_of_ends(scheduler: Scheduler, states: list[RequestState]) -> list[int]:
    """Run everything, with one place; the numbers of the states as they end."""
    ended: list[int] = []
    for _ in range(500):
        finished = run_one_step(scheduler)
        ended += [number for number, state in enumerate(states) if state.arrival in finished]
        if len(ended) == len(states):
            return ended
    pytest.fail(f"only {ended} ended")


@pytest.mark.parametrize("adapters", [("", "", "", ""), ("a", "b", "c", "d")])
def test_smaller_goes_first_then_first_come_first_served(adapters: tuple[str, ...]) -> None:
    _, _, scheduler = LIMITS.build(is_instant=True)
    states = [add(scheduler, priority, adapter) for priority, adapter in zip((5, 0, 5, -1), adapters, strict=True)]
    assert order_of_ends(scheduler, states) == [3, 1, 0, 2]


def test_urgency_does_not_push_other_tenants_aside() -> None:
    _, _, scheduler = LIMITS.build(is_instant=True)
    urgent = [add(scheduler, -100, tenant="pushy") for _ in range(10)]
    other = add(scheduler, 100, tenant="patient")
    ends = order_of_ends(scheduler, [*urgent, other])
    assert ends.index(10) <= 2, "its turn came as if nobody had said a word about priorities"
