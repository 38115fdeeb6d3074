"""Nobody starves anybody: simulations of the scheduler alone, in which a step takes as long as it has tokens."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from statistics import mean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.engine.accounts import Account, Claim, Ledger
from atoll.engine.state import RequestState
from support.scheduling import Limits, is_done, make_request

# Reading the weights takes as long as computing so many tokens.
STEP_COST = 16
PROMPT, COMPLETION = 96, 32


@dataclass(frozen=True)
class Arrival:
    at: float
    adapter: str
    tenant: str = ""
    num_prompt: int = PROMPT
    num_new: int = COMPLETION


@dataclass
class Traffic:
    """What became of a simulation: each arrival's steps and time until its first token."""

    steps: dict[Arrival, list[int]] = field(default_factory=lambda: defaultdict(list))
    times: dict[Arrival, list[float]] = field(default_factory=lambda: defaultdict(list))
    num_tokens: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    num_preemptions: int = 0


def simulate(arrivals: Iterable[Arrival], limits: Limits, *, until: float = float("inf")) -> Traffic:
    """Let requests with random prompts arrive; the clock counts computed tokens and STEP_COST for each step."""
    _, _, scheduler = limits.build(is_instant=True)
    coming = sorted(arrivals, key=lambda arrival: arrival.at)
    rng = random.Random(0)
    traffic = Traffic()
    arrived: dict[RequestState, tuple[Arrival, int]] = {}
    now = 0.0
    for step in itertools.count():
        if not arrived and coming:
            now = max(now, coming[0].at)
        while coming and coming[0].at <= now:
            arrival = coming.pop(0)
            prompt = rng.choices(range(10**6), k=arrival.num_prompt)
            state = scheduler.add(make_request(prompt, arrival.num_new, arrival.adapter, arrival.tenant))
            arrived[state] = arrival, step
        if not arrived or now > until:
            break
        batch = scheduler.schedule()
        now += STEP_COST + batch.num_tokens
        scheduler.advance(batch)
        for chunk in batch.chunks:
            arrival, first_step = arrived[chunk.state]
            traffic.num_tokens[arrival.tenant, arrival.adapter] += chunk.stop - chunk.start
            if not chunk.is_last:
                continue
            if len(chunk.state.token_ids) == arrival.num_prompt:
                traffic.steps[arrival].append(step + 1 - first_step)
                traffic.times[arrival].append(now - arrival.at)
            chunk.state.token_ids.append(0)
            if is_done(chunk.state):
                scheduler.remove(chunk.state)
                del arrived[chunk.state]
    traffic.num_preemptions = scheduler.num_preemptions
    return traffic


def every(period: float, count: int, adapter: str = "light", *, burst: int = 1, **options: Any) -> list[Arrival]:
    """`burst` requests at once, `count` times."""
    start = options.pop("start", 0)
    return [Arrival(start + i * period, adapter, **options) for i in range(count) for _ in range(burst)]


def flood(num_adapters: int = 1, **options: Any) -> list[Arrival]:
    """500 requests at once."""
    return [Arrival(1000, f"flood-{index % num_adapters}", **options) for index in range(500)]


LIMITS = {"num_blocks": 10_000, "block_size": 16, "num_slots": 64, "max_batch_tokens": 512, "max_num_requests": 32}
SEVEN = [arrival for i in range(7) for arrival in every(1600, 20, f"light-{i}", start=i * 200)]
SEVEN_TENANTS = [arrival for i in range(7) for arrival in every(1600, 20, tenant=f"tenant-{i}", start=i * 200)]
SCENARIOS = {
    "one adapter": (every(500, 40), flood(), {}),
    "seven adapters": (SEVEN, flood(), {}),
    "seven tenants": (SEVEN_TENANTS, flood(tenant="flood"), {}),
    "bursts": (every(4000, 10, burst=8), flood(), {}),
    "at the same moment": (every(1, 1, burst=8, start=1000), flood(), {}),
    "long prompts": (every(12_000, 4, num_prompt=4000), flood(), {}),
    "a flood of long prompts": (every(1000, 40), flood(num_prompt=2000), {}),
    "a tenant floods forty adapters": (every(500, 40, tenant="light"), flood(40), {}),
    "few places": (every(2000, 20), flood(), {"max_num_requests": 4}),
    "all places taken for long": (every(500, 40), flood(num_prompt=4, num_new=2000), {}),
    "all blocks taken": (every(1000, 40), flood(num_prompt=900, num_new=300), {"num_blocks": 150}),
    "few blocks and no cache": (every(500, 40), flood(), {"num_blocks": 100, "prefix_cache": False}),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_flood_leaves_the_time_to_first_token_of_others(name: str) -> None:
    """Within 1.5x in steps. In time it is more: nothing takes away the step that is under way when somebody comes."""
    light, flooding, options = SCENARIOS[name]
    until = light[-1].at + 10_000
    limits = Limits(**LIMITS | options)
    calm, loud = (simulate(arrivals, limits, until=until) for arrivals in (light, light + flooding))
    for arrival in light:
        assert len(loud.steps[arrival]) == len(calm.steps[arrival]) > 0
    calm_steps, loud_steps = (
        list(chain(*(traffic.steps[arrival] for arrival in set(light)))) for traffic in (calm, loud)
    )
    assert mean(loud_steps) <= 1.5 * mean(calm_steps)
    assert max(loud_steps) <= 1.5 * max(calm_steps)
    calm_times, loud_times = (
        list(chain(*(traffic.times[arrival] for arrival in set(light)))) for traffic in (calm, loud)
    )
    assert mean(loud_times) <= 2 * mean(calm_times)
    num_flooded = sum(count for (_, adapter), count in loud.num_tokens.items() if adapter.startswith("flood"))
    assert num_flooded > 0.3 * sum(loud.num_tokens.values()), "the flood is starved"


# Even shares


@pytest.mark.parametrize("by_tenant", [False, True])
def test_those_who_always_ask_get_the_same_number_of_tokens(by_tenant: bool) -> None:
    """Whatever they ask: long prompts, long completions, or many small requests."""
    kinds = {"prompts": (1500, 4, 100), "completions": (10, 300, 100), "small": (40, 10, 2000)}
    arrivals = []
    for name, (num_prompt, num_new, count) in kinds.items():
        adapter, tenant = ("same", name) if by_tenant else (name, "")
        arrivals += [Arrival(0, adapter, tenant, num_prompt, num_new)] * count
    traffic = simulate(arrivals, Limits(**LIMITS), until=100_000)
    counts = sorted(traffic.num_tokens.values())
    assert len(counts) == 3
    assert counts[0] > 0.8 * counts[-1]


def test_tenants_share_evenly_however_many_adapters_they_use() -> None:
    arrivals = [Arrival(0, "one", "a")] * 1000
    arrivals += [Arrival(0, f"adapter-{index}", "b") for index in range(20) for _ in range(50)]
    traffic = simulate(arrivals, Limits(**LIMITS), until=60_000)
    of_a = traffic.num_tokens["a", "one"]
    of_b = sum(count for (tenant, _), count in traffic.num_tokens.items() if tenant == "b")
    assert 0.8 < of_a / of_b < 1.25
    each = [count for (tenant, _), count in traffic.num_tokens.items() if tenant == "b"]
    assert len(each) == 20
    assert min(each) > 0.6 * max(each)


def test_many_who_ask_for_little_do_not_starve_one_who_asks_for_much() -> None:
    """Fresh adapters come faster than there is time for, about a hundred wait: the one with a queue gets its part."""
    fresh = [Arrival(index * 100, f"fresh-{index}") for index in range(800)]
    traffic = simulate([Arrival(0, "much")] * 400 + fresh, Limits(**LIMITS | {"num_slots": 1000}), until=80_000)
    assert traffic.num_tokens["", "much"] > 0.008 * sum(traffic.num_tokens.values())


def test_inside_a_flow_it_is_first_come_first_served() -> None:
    _, _, scheduler = Limits(**LIMITS).build(is_instant=True)
    states = [scheduler.add(make_request(100, 4, "a")) for _ in range(60)]
    firsts: list[RequestState] = []
    while len(firsts) < 60:
        running = list(scheduler.running)
        batch = scheduler.schedule()
        firsts += [state for state in scheduler.running if state not in running]
        scheduler.advance(batch)
        for chunk in batch.chunks:
            if chunk.is_last:
                chunk.state.token_ids.append(0)
            if is_done(chunk.state):
                scheduler.remove(chunk.state)
    assert firsts == states


def test_those_who_generate_never_wait_for_prompts() -> None:
    """However many prompts come, a running request gets a token in every step."""
    _, _, scheduler = Limits(**LIMITS).build(is_instant=True)
    generating = [scheduler.add(make_request([index], 40, "a")) for index in range(8)]
    scheduler.advance(scheduler.schedule())
    for step in range(1, 30):
        for state in generating:
            state.token_ids.append(0)
        for index in range(3):
            scheduler.add(make_request(range(index, 3000), 10, f"prompts-{step % 5}"))
        batch = scheduler.schedule()
        assert {chunk.state for chunk in batch.chunks} >= set(generating)
        assert batch.num_tokens > len(generating)
        scheduler.advance(batch)


def test_nobody_pays_for_tokens_that_a_preemption_took_out_of_a_step(caplog: pytest.LogCaptureFixture) -> None:
    """The flood's last request had its turn before the newcomer took its blocks in the same step."""
    caplog.set_level("INFO")
    limits = Limits(num_blocks=12, block_size=2, num_slots=2, max_batch_tokens=32, max_num_requests=8)
    _, _, scheduler = limits.build(is_instant=True)
    flood = [scheduler.add(make_request([index] * 6, 8, "flood", "flood")) for index in range(3)]
    flow = flood[0].flow
    num_computed = 0

    def step() -> None:
        nonlocal num_computed
        batch = scheduler.schedule()
        num_computed += sum(chunk.stop - chunk.start for chunk in batch.chunks if chunk.state in flood)
        assert (flow.served, flow.tenant.served) == (num_computed, num_computed)
        scheduler.advance(batch)
        for chunk in batch.chunks:
            chunk.state.token_ids.append(0)

    step()
    step()
    assert sum(len(state.block_ids) for state in flood) == limits.num_blocks
    newcomer = scheduler.add(make_request([9] * 4, 8, "light", "light"))
    level = newcomer.flow.tenant.served
    step()
    assert newcomer.is_running
    assert not flood[-1].is_running
    assert newcomer.flow.tenant.served == level + 4
    ids = [state.request.request_id for state in (flood[-1], newcomer)]
    assert caplog.messages == ["request {} is preempted for {}".format(*ids)]


# Accounts


@given(
    charges=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 100)), max_size=200),
    window=st.integers(1, 300),
)
@settings(max_examples=50, deadline=None)
def test_nobody_is_ahead_or_behind_by_more_than_the_window(charges: list[tuple[int, int]], window: int) -> None:
    ledger: Ledger[Account] = Ledger(window)
    parties = [ledger.enter(key, Account) for key in range(5)]
    for index, num_tokens in charges:
        ranks = [ledger.rank(party, 32)[1] for party in parties]
        ledger.take_back(parties[index], num_tokens, ledger.charge(parties[index], num_tokens))
        assert [ledger.rank(party, 32)[1] for party in parties] == pytest.approx(ranks, abs=1e-6)
        ledger.charge(parties[index], num_tokens)
        assert all(-window <= ledger.rank(party, 32)[1] <= window + 1e-6 for party in parties)


def test_a_pause_saves_nothing_up_and_a_debt_is_not_forgotten() -> None:
    ledger: Ledger[Account] = Ledger(1000)
    greedy, patient = (ledger.enter(key, Account) for key in ("greedy", "patient"))
    ledger.leave(patient)
    ledger.charge(greedy, 500)
    assert ledger.rank(ledger.enter("patient", Account), 32) == ledger.rank(greedy, 32)
    ledger.charge(greedy, 100)
    ledger.leave(greedy)
    again = ledger.enter("greedy", Account)
    assert again is greedy
    assert ledger.rank(again, 32) > ledger.rank(patient, 32)


def test_who_is_light() -> None:
    """Of 32 places the two small ones take 7; the others share 25."""
    ledger: Ledger[Account] = Ledger(1000)
    demands = {"a": 1, "b": 6, "c": 9, "d": 12, "e": 500}
    for key, demand in demands.items():
        for _ in range(demand - 1):
            ledger.enter(key, Account)
    parties = {key: ledger.enter(key, Account) for key in demands}
    assert ledger.share(32) == 25 / 3
    assert [key for key, party in parties.items() if ledger.rank(party, 32)[0] == Claim.LIGHT] == ["a", "b"]
    for _ in range(500):
        ledger.leave(parties["e"])
    assert ledger.share(32) == float("inf"), "there is a place for everybody"
