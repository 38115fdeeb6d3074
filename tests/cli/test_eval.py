"""`atoll eval` over a tiny fleet: what it prints, where it writes, and how it refuses."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from atoll.cli.eval import evaluate
from atoll.errors import AdapterNotFound, ConfigError, DataError, OverBudget, UsageError
from support.fleets import FleetOnDisk, make_fleet
from support.providers import fake_provider


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> FleetOnDisk:
    fleet = make_fleet(tmp_path_factory.mktemp("fleet"), num_examples=4)
    fleet.publish("colors", seed=1)
    fleet.publish("shapes", seed=2)
    return fleet


def call(fleet: FleetOnDisk, **options: Any) -> None:
    """The command's function with its own defaults."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(evaluate).parameters.items()}
    evaluate(**(defaults | {"fleet": fleet.path, "store": fleet.store.root} | options))


def test_the_table_and_the_files(fleet: FleetOnDisk, capsys: pytest.CaptureFixture[str]) -> None:
    call(fleet, limit=3)
    captured = capsys.readouterr()
    for text in ("colors", "shapes", "rouge_l", "0.900", "0.500", "published scores, not run here"):
        assert text in captured.out
    assert "\x1b" not in captured.out
    folder = fleet.folder / "run" / "eval"
    assert f"report: {folder / 'report.html'}" in captured.out
    assert "12 answers: 0%" in captured.err
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        "raw/colors/adapter.jsonl",
        "raw/colors/base.jsonl",
        "raw/run.json",
        "raw/shapes/adapter.jsonl",
        "raw/shapes/base.jsonl",
        "report.md",
        "results.json",
        "scores.svg",
    }


def test_json_is_the_results_and_nothing_else(
    fleet: FleetOnDisk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(fleet, limit=2, output=tmp_path, adapter=["shapes"], as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "results.json").read_text())
    assert [member["name"] for member in printed["members"]] == ["shapes"]
    assert printed["run"]["limit"] == 2


def test_an_adapter_that_is_not_tuned_yet(fleet: FleetOnDisk, tmp_path: Path) -> None:
    with pytest.raises(AdapterNotFound, match="not tuned yet") as caught:
        call(fleet, store=tmp_path / "empty", output=tmp_path / "eval")
    assert caught.value.exit_code == 4
    assert f"atoll tune {fleet.path}" in str(caught.value)
    assert not (tmp_path / "eval").exists()


def test_a_fleet_or_data_that_cannot_be_read(fleet: FleetOnDisk, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        call(replace(fleet, folder=tmp_path / "absent"))
    with pytest.raises(DataError, match="no such folder"):
        call(fleet, data_root=tmp_path / "absent", output=tmp_path / "eval")
    with pytest.raises(UsageError, match="has no adapter 'color'"):
        call(fleet, adapter=["color"])
    assert not (tmp_path / "eval").exists()


def test_a_second_run_asks_nothing_and_says_the_same(
    fleet: FleetOnDisk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(fleet, limit=2, output=tmp_path, adapter=["colors"])
    first = capsys.readouterr()
    call(fleet, limit=2, output=tmp_path, adapter=["colors"])
    second = capsys.readouterr()
    assert "4 answers: 0%" in first.err
    assert "0 answers: 0%" in second.err
    assert second.out.splitlines()[:4] == first.out.splitlines()[:4]


def test_a_remote_contender_s_cost_is_shown_while_it_grows(
    fleet: FleetOnDisk, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ATOLL_REMOTE_KEY", raising=False)
    price = {"usd_per_million_input": 1.0, "usd_per_million_output": 10.0}
    with fake_provider() as provider:
        against = [f"{provider.url}#m"]
        call(fleet, limit=2, output=tmp_path, adapter=["colors"], against=against, **price)
    captured = capsys.readouterr()
    assert "2 answers · $0.0000: 0%" in captured.err
    contenders = json.loads((tmp_path / "raw" / "run.json").read_text())["members"][0]["contenders"]
    assert contenders[-1]["cost_usd"] == pytest.approx(2 * 50 / 1e6)


def test_a_cap_that_is_reached_is_an_error_of_its_own(fleet: FleetOnDisk, tmp_path: Path) -> None:
    price = {"usd_per_million_input": 1e6, "usd_per_million_output": 1e6}
    with fake_provider() as provider, pytest.raises(OverBudget) as caught:
        call(fleet, output=tmp_path, against=[f"{provider.url}#m"], max_usd=1.0, **price)
    assert provider.asked == []
    assert caught.value.exit_code == 6
    assert "raise --max-usd and run again" in str(caught.value)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"against": ["gpt-4o"]}, "is no contender"),
        ({"against": ["openai:gpt-4o"]}, "no key for openai:gpt-4o"),
        ({"against": ["http://host/v1#m"], "max_usd": 1.0}, "no price is known for m"),
        ({"usd_per_million_input": 1.0}, "half a price"),
        ({"max_usd": float("nan")}, "no finite number"),
    ],
)
def test_contenders_that_cannot_be_asked_are_refused_before_anything_is_loaded(
    fleet: FleetOnDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UsageError, match=said):
        call(fleet, output=tmp_path / "eval", **options)
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize(
    "arguments", [["--limit", "0"], ["--seed", "-1"], ["--limit", "many"], ["--concurrency", "0"], ["--max-usd", "-1"]]
)
def test_numbers_out_of_range_are_usage_errors(fleet: FleetOnDisk, arguments: list[str]) -> None:
    app = typer.Typer()
    app.command()(evaluate)
    result = CliRunner().invoke(app, [str(fleet.path), *arguments])
    assert result.exit_code == 2
    assert arguments[0] in result.output
