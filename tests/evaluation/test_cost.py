"""What serving costs: the closed forms against a search over all numbers of requests."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from atoll.config.prices import MachinePrice, TokenPrice, named_machine, token_price
from atoll.errors import UsageError
from atoll.evaluation.cost import (
    HOURS_PER_MONTH,
    THROUGHPUTS,
    BreakEven,
    Hosting,
    Kind,
    Throughput,
    Workload,
    break_even,
    compare,
    costs_at,
    shared_pays_until,
    usd_per_request,
)
from atoll.evaluation.cost_plot import cost_svg

SEARCHED = 400


def small_hosting(usd_per_month: float, capacity: float, share: float = 1.0) -> Hosting:
    """A machine that answers so many requests of one new token a month."""
    price = MachinePrice("box", usd_per_month / HOURS_PER_MONTH, "here", "2026-11-21")
    return Hosting(price, Throughput(capacity / (HOURS_PER_MONTH * 3600), None, share, "", ""), utilization=1.0)


def model(usd: float) -> TokenPrice:
    """A model that takes `usd` dollars for a new token."""
    return TokenPrice("model", 0.0, usd * 1e6, False, "there", "2026-11-21")


def workload(requests: float = 1, num_tasks: int = 1) -> Workload:
    return Workload(requests, 0, 1, num_tasks)


@given(
    usd=st.floats(0.5, 40),
    line=st.floats(0.05, 3),
    capacity=st.floats(2.5, 40),
    share=st.floats(0.5, 1),
    num_tasks=st.integers(1, 3),
    kind=st.sampled_from(["shared", "dedicated"]),
)
def test_break_even_is_what_a_search_finds(
    usd: float, line: float, capacity: float, share: float, num_tasks: int, kind: Kind
) -> None:
    hosting, one = small_hosting(usd, capacity, share), workload(num_tasks=num_tasks)
    steps = getattr(hosting, kind)(one)
    costs = [(steps.at(count), line * count) for count in range(1, SEARCHED + 1)]
    assume(not any(math.isclose(own, others) for own, others in costs))  # Rounding would decide.
    pays = [own <= others for own, others in costs]
    found = break_even(one, hosting, model(line), kind)
    if found is None:
        assert not any(pays)
        return
    assert found.first == pays.index(True) + 1 if found.first <= SEARCHED else not any(pays)
    last_that_does_not = max((count for count, each in enumerate(pays, 1) if not each), default=0)
    if found.always is not None and found.always <= SEARCHED / 2:
        assert found.always == last_that_does_not + 1
    elif found.always is None:
        assert last_that_does_not > SEARCHED - steps.requests


@given(capacity=st.floats(5, 40), share=st.floats(0.3, 1), num_tasks=st.integers(1, 4))
def test_sharing_pays_until_the_closed_form_says(capacity: float, share: float, num_tasks: int) -> None:
    hosting, one = small_hosting(10, capacity, share), workload(num_tasks=num_tasks)
    shared, dedicated = hosting.shared(one), hosting.dedicated(one)
    until = 0
    while until < 10 * SEARCHED and shared.at(until + 1) < dedicated.at(until + 1) - 1e-9:
        until += 1
    assert shared_pays_until(one, hosting) == until


def test_offers_are_sorted_and_say_what_they_are() -> None:
    hosting = small_hosting(100, 1000)
    offers = compare(workload(1500, num_tasks=5), hosting, [model(0.01), TokenPrice("open", 0, 1e4, True, "", "")])
    costs = [offer.usd_per_month for offer in offers]
    assert costs == sorted(costs)
    by_kind = {offer.kind: offer for offer in offers}
    assert by_kind["shared"].num_machines == 2
    assert by_kind["shared"].usd_per_month == pytest.approx(200)
    assert by_kind["dedicated"].num_machines == 5
    assert by_kind["dedicated"].usd_per_month == pytest.approx(500)
    assert by_kind["api"].usd_per_month == pytest.approx(15)
    assert by_kind["api"].usd_per_thousand_requests == pytest.approx(10)
    assert by_kind["hosted"].num_machines is None


def test_nothing_is_divided_by_no_requests() -> None:
    offers = compare(workload(0), small_hosting(100, 10), [model(1)])
    assert [offer.usd_per_month for offer in offers] == [0, pytest.approx(100), pytest.approx(100)]
    assert all(offer.usd_per_thousand_requests is None for offer in offers)


def test_a_machine_that_costs_more_than_all_it_answers_never_pays() -> None:
    assert break_even(workload(), small_hosting(100, 10), model(9)) is None
    assert break_even(workload(), small_hosting(100, 10), model(0)) is None
    assert break_even(workload(), small_hosting(100, 10), model(200)) == BreakEven("shared", "model", 1, 1)


def test_what_was_measured_gives_back_the_measurement() -> None:
    """96 prompt and 32 new tokens at 252 new tokens a second, 204 with 32 adapters: docs/LOG.md."""
    measured, one = THROUGHPUTS["m7i.large"], Workload(1, 96, 32, 1)
    assert 32 / measured.seconds(one) == pytest.approx(252, rel=0.02)
    assert 32 / measured.seconds(one) * measured.adapters_share == pytest.approx(204, rel=0.02)


def test_capacity_follows_time_adapters_and_utilization() -> None:
    hosting = Hosting(named_machine("m7i.large"), Throughput(100, 1000, 0.5, "", ""), utilization=0.25)
    one = Workload(1, 500, 50, 3)
    assert hosting.capacity(one, with_adapters=False) == HOURS_PER_MONTH * 3600 / 4
    assert hosting.capacity(one, with_adapters=True) == HOURS_PER_MONTH * 3600 / 8


@pytest.mark.parametrize(
    "make",
    [
        lambda: Workload(-1, 1, 1, 1),
        lambda: Workload(math.nan, 1, 1, 1),
        lambda: Workload(1, math.inf, 1, 1),
        lambda: Workload(1, 0, 0, 1),
        lambda: Workload(1, 1, 1, 0),
        lambda: Throughput(0, None, 1, "", ""),
        lambda: Throughput(1, -1, 1, "", ""),
        lambda: Throughput(1, None, 1.5, "", ""),
        lambda: Hosting(named_machine("m7i.large"), THROUGHPUTS["m7i.large"], utilization=0),
        lambda: Hosting(named_machine("m7i.large"), THROUGHPUTS["A100 80GB"]).shared(Workload(1, 9, 0, 1)),
    ],
)
def test_numbers_that_mean_nothing_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(UsageError):
        make()


def test_the_plot_holds_every_offer_and_nothing_from_outside() -> None:
    hosting, one = small_hosting(100, 1000), workload(500, num_tasks=7)
    price = token_price("gpt-4o")
    assert price is not None
    svg = cost_svg(one, hosting, [price])
    assert svg.startswith("<svg")
    for label in costs_at(one, hosting, [price], [1.0]):
        assert label in svg
    assert "7 tasks" in svg
    assert re.findall(r'(?:href|src)="(?!#)', svg) == []


def test_the_costs_of_a_plot_are_those_of_the_offers() -> None:
    hosting, one = small_hosting(100, 1000), workload(2500, num_tasks=2)
    price = model(0.02)
    shared, dedicated, by_token = (values[0] for values in costs_at(one, hosting, [price], [2500]).values())
    assert (shared, dedicated) == (pytest.approx(300), pytest.approx(400))
    assert by_token == pytest.approx(2500 * usd_per_request(one, price))
