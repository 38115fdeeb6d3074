"""Operations: figures that agree with the engine's, quantiles that agree with the data, and a page that shows them."""

from __future__ import annotations

import threading
from typing import Any

import httpx2 as httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import expect
from prometheus_client import Histogram

from atoll.engine import EngineStats
from atoll.server.metrics import ServerMetrics
from atoll.server.ui.operations_history import NUM_KEPT, History, quantile
from support.browsing import Watched, overflowing, serious_findings
from support.pages import ShownSite
from support.servers import wait_until

BOUNDS = (0.01, 0.1, 1.0, 10.0, float("inf"))


def counted(values: list[float]) -> tuple[tuple[float, float], ...]:
    return tuple((bound, float(sum(value <= bound for value in values))) for bound in BOUNDS)


@given(
    st.lists(st.floats(0, 20), max_size=30), st.lists(st.floats(0, 20), min_size=1, max_size=50), st.floats(0.01, 1.0)
)
def test_a_quantile_lies_in_the_bucket_of_the_values_own(old: list[float], new: list[float], share: float) -> None:
    found = quantile(share, counted(old), counted(old + new))
    exact = sorted(new)[max(0, -int(-share * len(new) // 1) - 1)]
    bucket = next(index for index, bound in enumerate(BOUNDS) if exact <= bound)
    low = BOUNDS[bucket - 1] if bucket else 0.0
    high = BOUNDS[bucket] if bucket < len(BOUNDS) - 1 else low
    assert found is not None
    assert low - 1e-6 <= found <= high + 1e-6


def test_where_nothing_was_measured_there_is_no_quantile() -> None:
    same = counted([0.5, 2.0])
    assert quantile(0.5, same, same) is None
    assert quantile(0.5, (), ()) is None


def history(stats: list[EngineStats]) -> History:
    moments = iter(range(len(stats)))
    taken = iter(stats)
    return History(lambda: next(taken), ServerMetrics(EngineStats, 8), clock=lambda: 1000.0 + next(moments))


def test_rates_are_of_what_came_between_two_looks() -> None:
    seen = history(
        [
            EngineStats(num_steps=10, num_computed_tokens=100, num_generated_tokens=40),
            EngineStats(num_steps=14, num_computed_tokens=180, num_generated_tokens=50, num_running=3,
                        running_by_adapter={"b": 2, "a": 1}, num_blocks=10, num_free_blocks=4),
        ]
    )  # fmt: skip
    seen.look()
    seen.look()
    (row,) = seen.after(0)
    assert (row["steps"], row["tokens_per_step"], row["generated"], row["computed"]) == (4, 20, 10, 80)
    assert (row["running"], row["kv_use"], list(row["batch"].items())) == (3, 0.6, [("a", 1), ("b", 2)])


def test_ten_minutes_are_kept_and_only_what_is_new_is_told() -> None:
    seen = history([EngineStats(num_steps=number) for number in range(2000)])
    for _ in range(2000):
        seen.look()
    assert len(seen.after(0)) == NUM_KEPT
    assert [row["number"] for row in seen.after(1997)] == [1998, 1999, 2000]
    assert seen.after(2000) == []
    assert len(seen.after(5000)) == NUM_KEPT, "a page of the server's earlier life gets all again"


def test_a_look_costs_nothing_that_a_step_would_feel() -> None:
    """It reads counters that exist: no histogram is made, and none is changed."""
    metrics = ServerMetrics(EngineStats, 8)

    def rendered() -> list[str]:
        lines = metrics.render().decode().splitlines()
        return [line for line in lines if not line.startswith("lora_requests_info{")]  # its value is the time

    before = rendered()
    assert set(metrics.latencies()) == {"queue", "first_token", "between_tokens", "request"}
    assert metrics.troubles() == {}
    assert rendered() == before


def test_latencies_and_troubles_are_the_ones_of_the_metrics() -> None:
    metrics = ServerMetrics(EngineStats, 8)
    for gap_s in (0.002, 0.002, 0.2):
        metrics.token_came(gap_s)
    metrics.refused("overloaded")
    between = metrics.latencies()["between_tokens"]
    assert between[-1] == (float("inf"), 3.0)
    assert isinstance(metrics._gap_s, Histogram)
    assert metrics.troubles() == {"overloaded": 1}


@pytest.fixture
def busy(site: ShownSite) -> Any:
    """Requests one after another for as long as the test runs."""
    is_over = threading.Event()

    def ask(name: str) -> None:
        parameters = {"adapter_id": name, "max_new_tokens": 400, "ignore_eos_token": True}
        with httpx.Client(timeout=60) as client:
            while not is_over.is_set():
                client.post(f"{site.url}/generate", json={"inputs": "Hello", "parameters": parameters})

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("alpha", "beta", "alpha")]
    for thread in threads:
        thread.start()
    yield
    is_over.set()
    for thread in threads:
        thread.join(timeout=60)


def test_the_running_batch_is_shown_with_its_adapters_and_survives_a_reload(
    site: ShownSite, tab: Watched, busy: None
) -> None:
    # A look is one moment of a second, which may fall between two requests: one look alone may miss either adapter.
    wait_until(lambda: {"alpha", "beta"} <= {name for look in looks(site)["looks"] for name in look["batch"]})
    page = tab.goto("/ui/operations")
    expect(page.locator("#strip-legend")).to_contain_text("alpha")
    expect(page.locator("#chart-queue canvas")).to_be_visible()
    wait_until(lambda: len(looks(site)["looks"]) >= 3)
    seen = [look["number"] for look in looks(site)["looks"]]
    page.reload()
    expect(page.locator("#strip-legend")).to_contain_text("beta")
    assert set(seen) <= {look["number"] for look in looks(site)["looks"]}
    assert serious_findings(page) == []


def test_the_page_fits_a_phone_and_the_dark(open_tab: Any) -> None:
    with open_tab(viewport={"width": 360, "height": 740}, color_scheme="dark") as watched:
        page = watched.goto("/ui/operations")
        expect(page.locator("h1")).to_have_text("Operations")
        assert overflowing(page) <= 0
        assert serious_findings(page) == []


def looks(site: ShownSite) -> Any:
    return httpx.get(f"{site.url}/ui/operations/looks").json()
