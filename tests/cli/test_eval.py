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
from atoll.errors import AdapterNotFound, ConfigError, DataError, UsageError
from support.fleets import FleetOnDisk, make_fleet


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
    assert f"report: {folder / 'report.md'}" in captured.out
    assert "12 answers: 0%" in captured.err
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == [
        "raw/colors/adapter.jsonl",
        "raw/colors/base.jsonl",
        "raw/run.json",
        "raw/shapes/adapter.jsonl",
        "raw/shapes/base.jsonl",
        "report.md",
        "results.json",
        "scores.svg",
    ]


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


@pytest.mark.parametrize("arguments", [["--limit", "0"], ["--seed", "-1"], ["--limit", "many"]])
def test_numbers_out_of_range_are_usage_errors(fleet: FleetOnDisk, arguments: list[str]) -> None:
    app = typer.Typer()
    app.command()(evaluate)
    result = CliRunner().invoke(app, [str(fleet.path), *arguments])
    assert result.exit_code == 2
    assert arguments[0] in result.output
