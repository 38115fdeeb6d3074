"""The price table, and what a run is said to cost."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import pytest

from atoll.config.prices import cost_usd, hourly_price, machine_prices, named_machine, token_price, token_prices
from atoll.errors import ConfigError

OWN = """\
sources: {list: {url: "https://example.org/prices", date: "2026-11-01"}}
cpu:
  - {name: large-box, num_cpus: 64, usd_per_hour: 1.5}
  - {name: my-box, num_cpus: 4, usd_per_hour: 0.05, source: list}
gpu:
  - {name: my-card, gpu: RTX 4090, usd_per_hour: 0.3}
  - {name: my-h200, gpu: H200, usd_per_hour: 2}
models:
  - {name: gpt-4o, usd_per_million_input: 1, usd_per_million_output: 2}
  - {name: own-model, usd_per_million_input: 0, usd_per_million_output: 0.5, hosted: true}
"""


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATOLL_USD_PER_HOUR", raising=False)
    monkeypatch.delenv("ATOLL_PRICES", raising=False)


@pytest.fixture
def own_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(OWN)
    monkeypatch.setenv("ATOLL_PRICES", str(path))
    return path


def test_every_price_is_positive_and_says_where_and_for_which_day_it_was_read() -> None:
    machines, models = machine_prices().values(), token_prices().values()
    assert len(machines) > 20
    assert len(models) > 20
    assert all(price.usd_per_hour > 0 for price in machines)
    assert all(0 < price.usd_per_million_input <= price.usd_per_million_output for price in models)
    for price in (*machines, *models):
        assert price.source.startswith("https://")
        assert date(2024, 1, 1) <= date.fromisoformat(price.date) <= date.today()


def test_machines_without_gpu_cost_more_the_larger_they_are() -> None:
    prices = [hourly_price(num_cpus=num_cpus).usd_per_hour for num_cpus in range(1, 200)]
    assert prices == sorted(prices)
    assert len(set(prices)) == 8


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


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-4o", "gpt-4o"),
        (" GPT-4o ", "gpt-4o"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku"),
        ("gpt-4-0613", "gpt-4"),
    ],
)
def test_a_snapshot_of_a_model_costs_what_the_model_does_unless_it_has_a_price_of_its_own(
    model: str, name: str
) -> None:
    price = token_price(model)
    assert price is not None
    assert price.name == name


@pytest.mark.parametrize("model", ["", "gpt-4o-audio", "gpt-40", "latest", "-2024-08-06"])
def test_a_model_that_is_not_listed_has_no_price(model: str) -> None:
    assert token_price(model) is None


def test_tokens_cost_by_the_million() -> None:
    price = token_price("gpt-4o")
    assert price is not None
    assert price.cost_usd(1e6, 1e6) == pytest.approx(12.5)
    assert price.cost_usd(200, 0) == pytest.approx(0.0005)


def test_a_file_of_ones_own_lies_over_the_table(own_prices: Path) -> None:
    assert hourly_price(num_cpus=3).name == "my-box"
    assert hourly_price(num_cpus=8).name == "large-box"
    assert hourly_price(num_cpus=128).name == "m7i.48xlarge"
    assert hourly_price("NVIDIA GeForce RTX 4090", device="cuda").name == "my-card"
    assert hourly_price("NVIDIA H200", device="cuda").usd_per_hour == 2
    assert hourly_price("Tesla T4", device="cuda").name == "g4dn.xlarge"
    assert "assumed" in hourly_price("NVIDIA GeForce RTX 5090", device="cuda").name
    changed, added, kept = (token_price(name) for name in ("gpt-4o", "own-model", "gpt-4.1"))
    assert changed is not None and added is not None and kept is not None  # noqa: PT018
    assert (changed.usd_per_million_output, changed.source) == (2, str(own_prices))
    assert added.hosted
    assert kept.source.startswith("https://")
    assert (named_machine("my-box").source, named_machine("my-box").date) == (
        "https://example.org/prices",
        "2026-11-01",
    )


def test_a_file_that_has_changed_is_read_again(own_prices: Path) -> None:
    assert hourly_price(num_cpus=3).usd_per_hour == 0.05
    own_prices.write_text(OWN.replace("0.05", "0.06"))
    os.utime(own_prices, ns=(1, 1))
    assert hourly_price(num_cpus=3).usd_per_hour == 0.06


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("usd_per_hour: 1.5", "usd_per_hour: cheap", ":3:", "number"),
        ("usd_per_hour: 0.3", "usd_per_hour: -1", ":6:", "at least 0"),
        ("source: list", "source: lists", ":4:", "not in `sources`"),
        ("name: large-box", "name: my-box", ":4:", "has a price already"),
        ("num_cpus: 64", "num_gpus: 64", ":3:", "num_cpus"),
        ('"2026-11-01"', "2026-11-31", ":1:", "not a day"),
        ("cpu:", "unlisted_gpu: T4\ncpu:", ":2:", "no entry of `gpu`"),
        (OWN, "- 1", ":1:", "mapping"),
        (OWN, "", ":1:", "empty"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(own_prices: Path, old: str, new: str, place: str, message: str) -> None:
    own_prices.write_text(OWN.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        hourly_price()
    assert message in str(caught.value)
    assert place in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_PRICES", str(tmp_path / "nowhere.yaml"))
    with pytest.raises(ConfigError, match="ATOLL_PRICES"):
        token_price("gpt-4o")
