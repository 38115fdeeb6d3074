"""The price table, and what a run is said to cost."""

from __future__ import annotations

from datetime import date

import pytest

from atoll.config.prices import _table, cost_usd, hourly_price
from atoll.errors import ConfigError


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATOLL_USD_PER_HOUR", raising=False)


def test_every_price_is_positive_and_says_where_and_when_it_was_read() -> None:
    prices = _table().machines.values()
    assert len(prices) == len(_table().cpu) + len(_table().gpu)
    for price in prices:
        assert price.usd_per_hour > 0
        assert price.source.startswith("https://")
        assert date(2025, 1, 1) <= date.fromisoformat(price.date) <= date.today()


def test_machines_without_gpu_grow_and_cost_more() -> None:
    sizes = [(num_cpus, price.usd_per_hour) for num_cpus, price in _table().cpu]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("num_cpus", "name"),
    [(1, "m7i.large"), (2, "m7i.large"), (3, "m7i.xlarge"), (64, "m7i.16xlarge"), (1000, "m7i.48xlarge")],
)
def test_without_gpu_the_smallest_machine_that_is_enough_counts(num_cpus: int, name: str) -> None:
    assert hourly_price(num_cpus=num_cpus).name == name


@pytest.mark.parametrize(
    ("device_name", "name"),
    [
        ("Tesla T4", "g4dn.xlarge"),
        ("NVIDIA L4", "g6.xlarge"),
        ("NVIDIA L40S", "g6e.xlarge"),
        ("NVIDIA A10G", "g5.xlarge"),
        ("NVIDIA A100-SXM4-40GB", "p4d.24xlarge / 8"),
        ("NVIDIA A100 80GB PCIe", "p4de.24xlarge / 8"),
        ("NVIDIA H100 80GB HBM3", "p5.4xlarge"),
        ("NVIDIA H200", "p5en.48xlarge / 8"),
    ],
)
def test_a_gpu_is_found_by_the_name_that_its_driver_gives(device_name: str, name: str) -> None:
    assert hourly_price(device_name, device="cuda:0").name == name


@pytest.mark.parametrize("device_name", [None, "NVIDIA GeForce RTX 5090"])
def test_an_unlisted_gpu_counts_as_an_assumption_that_is_said(device_name: str | None) -> None:
    price = hourly_price(device_name, device="cuda")
    assert price.usd_per_hour == hourly_price("p5.4xlarge").usd_per_hour
    assert "assumed" in price.name


def test_a_machine_can_be_named() -> None:
    assert hourly_price("g6.xlarge").usd_per_hour == 0.8048


def test_an_unknown_machine_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"m7i\.larg'") as caught:
        hourly_price("m7i.larg")
    assert caught.value.mend == "did you mean m7i.large?"


def test_the_environment_overrides_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_USD_PER_HOUR", "0.36")
    price = hourly_price("NVIDIA H200", device="cuda")
    assert (price.usd_per_hour, price.source) == (0.36, "ATOLL_USD_PER_HOUR")
    assert cost_usd(100, price) == pytest.approx(0.01)


@pytest.mark.parametrize("text", ["cheap", "-1", "nan", "inf"])
def test_a_wrong_override_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ATOLL_USD_PER_HOUR", text)
    with pytest.raises(ConfigError, match=text) as caught:
        hourly_price()
    assert caught.value.where == "ATOLL_USD_PER_HOUR"


def test_costs_are_by_the_second() -> None:
    price = hourly_price(num_cpus=2)
    assert cost_usd(3600, price) == pytest.approx(price.usd_per_hour)
    assert cost_usd(0, price) == 0
