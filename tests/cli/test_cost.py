"""`atoll cost`: the table, the JSON, the plot, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from atoll.cli.main import app
from atoll.errors import AtollError, ConfigError, NotFound, UsageError


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATOLL_USD_PER_HOUR", raising=False)
    monkeypatch.delenv("ATOLL_PRICES", raising=False)


def run(*options: str) -> str:
    result = CliRunner().invoke(app, ["cost", *options])
    if isinstance(result.exception, AtollError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_report_names_every_offer_its_break_even_and_its_source() -> None:
    out = run("--requests", "1000000", "--prompt-tokens", "300", "--new-tokens", "30", "--tasks", "25")
    for text in (
        "all adapters on one",
        "a machine for each model",
        "gpt-4.1",
        "claude-haiku-4-5",
        "together-qwen3.5-9b",
    ):
        assert text in out
    assert "than gpt-4.1: from 87,600 requests a month" in out
    assert "1,839.60" in out, "25 machines for 730 hours at 0.1008 dollars"
    assert "prices: https://platform.claude.com/" in out


def test_the_json_has_the_same_and_a_plot_is_written(tmp_path: Path) -> None:
    plot = tmp_path / "cost.svg"
    report = json.loads(run("--model", "gpt-4o", "--tasks", "3", "--plot", str(plot), "--json"))
    assert {offer["kind"] for offer in report["offers"]} == {"shared", "dedicated", "api"}
    assert {found["kind"] for found in report["break_even"]} <= {"shared", "dedicated"}
    assert report["workload"]["num_tasks"] == 3
    assert plot.read_text().startswith("<svg")


def test_a_machine_is_known_by_its_gpu_and_a_rate_of_ones_own_goes_before(tmp_path: Path) -> None:
    report = json.loads(run("--machine", "runpod-a100-sxm-80gb", "--json"))
    assert report["hosting"]["throughput"]["base"].startswith("Llama-2-7B")
    own = json.loads(run("--machine", "runpod-a100-sxm-80gb", "--new-tokens-per-second", "2500", "--json"))
    assert own["hosting"]["throughput"]["new_tokens_per_second"] == 2500


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--machine", "m7i.larg"], ConfigError, "m7i.large"),
        (["--machine", "g6.xlarge"], UsageError, "--new-tokens-per-second"),
        (["--model", "gpt4o"], NotFound, "gpt-4o"),
        (["--utilization", "2"], UsageError, "utilization"),
        (["--prompt-tokens", "0", "--new-tokens", "0"], UsageError, "nothing to serve"),
        (["--requests", "inf"], UsageError, "inf"),
    ],
)
def test_what_cannot_be_compared_is_told(options: list[str], error: type[AtollError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        run(*options)
    assert caught.value.mend


def test_all_prices_can_be_listed() -> None:
    assert "claude-sonnet-4-5" in run("--list")
    report = json.loads(run("--list", "--json"))
    assert {"usd_per_hour", "source", "date"} <= set(report["machines"][0])
    assert {"usd_per_million_input", "source", "date"} <= set(report["models"][0])
