"""What a fleet file means: defaults, overrides, paths and the automatic learning rate."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from atoll.config.fleet import FleetConfig, LoraConfig, auto_learning_rate
from atoll.config.load import load_fleet
from atoll.errors import UsageError

SHORTEST = """\
base_model: smollm2-135m-instruct
adapters:
  sentiment: {task: glue_sst2}
  tickets:   {task: ./tickets.yaml, adapter: {r: 8}}
"""


def write(folder: Path, text: str) -> Path:
    (folder / "tickets.yaml").touch()
    path = folder / "support.yaml"
    path.write_text(text)
    return path


def test_the_shortest_file(tmp_path: Path) -> None:
    fleet = load_fleet(write(tmp_path, SHORTEST))
    sentiment, tickets = fleet.members()
    assert (sentiment.name, sentiment.task_ref) == ("sentiment", "glue_sst2")
    assert (sentiment.adapter.r, sentiment.adapter.lora_alpha, sentiment.adapter.scaling) == (16, 32, 2.0)
    assert (tickets.name, tickets.task_ref) == ("tickets", str(tmp_path / "tickets.yaml"))
    assert (tickets.adapter.r, tickets.adapter.lora_alpha) == (8, 16)
    assert sentiment.trainer.learning_rate == "auto"
    assert fleet.output == "runs/support"


def test_an_adapters_own_settings_go_before_the_fleets(tmp_path: Path) -> None:
    text = """\
adapters:
  plain: {task: viggo}
  own:
    task: viggo
    adapter: {r: 4, target_modules: [q_proj]}
    trainer: {epochs: 9, early_stop: null, seed: 0}
    data: {limit: 10}
adapter: {r: 64, use_rslora: true, alpha: 12}
trainer: {epochs: 2, early_stop: 5, seed: 7, learning_rate: 1e-3, token_budget: 99}
data: {limit: 500, max_length: 128}
"""
    plain, own = load_fleet(write(tmp_path, text)).members()
    assert (plain.adapter.r, plain.adapter.use_rslora, plain.adapter.target_modules) == (64, True, "all-linear")
    assert (own.adapter.r, own.adapter.use_rslora, own.adapter.target_modules) == (4, True, ("q_proj",))
    assert own.adapter.scaling == pytest.approx(12 / 2)
    assert (plain.trainer.epochs, plain.trainer.early_stop, plain.trainer.seed) == (2, 5, 7)
    # A default that an adapter writes out is a setting like any other.
    assert (own.trainer.epochs, own.trainer.early_stop, own.trainer.seed) == (9, None, 0)
    assert own.trainer.learning_rate == plain.trainer.learning_rate == 1e-3
    assert own.trainer.token_budget == 99
    assert (own.data.limit, own.data.max_length) == (10, 128)


def test_paths_are_taken_from_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, SHORTEST.replace("smollm2-135m-instruct", "./base"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    fleet = load_fleet("../support.yaml")
    assert Path(fleet.base_model).resolve() == tmp_path / "base"
    assert Path(fleet.adapters["tickets"].task).samefile(tmp_path / "tickets.yaml")


@pytest.mark.parametrize("base", ["org/name@main", "smollm2-135m-instruct", "org/name"])
def test_hub_ids_stay_as_they_are(tmp_path: Path, base: str) -> None:
    fleet = load_fleet(write(tmp_path, SHORTEST.replace("smollm2-135m-instruct", base)))
    assert fleet.base_model == base


def test_aliases_and_comments_are_welcome(tmp_path: Path) -> None:
    text = "adapters:\n  a: &one {task: viggo, adapter: {r: 4}} # first\n  b: *one\n"
    a, b = load_fleet(write(tmp_path, text)).members()
    assert a.adapter == b.adapter == LoraConfig(r=4)


def test_nothing_changes_afterwards(tmp_path: Path) -> None:
    fleet = load_fleet(write(tmp_path, SHORTEST))
    with pytest.raises(ValidationError, match="frozen"):
        fleet.base_model = "other"
    assert FleetConfig.model_validate_json(fleet.model_dump_json()) == fleet


def test_auto_learning_rate_falls_with_size() -> None:
    assert auto_learning_rate(135_000_000) == pytest.approx(1e-3)
    assert auto_learning_rate(7_241_732_096) == pytest.approx(2e-4)
    assert auto_learning_rate(70_000_000_000) == pytest.approx(2e-4)
    # Half way between 2e8 and 7e9 on a logarithmic scale lies half way between the rates on theirs.
    assert auto_learning_rate(round((2e8 * 7e9) ** 0.5)) == pytest.approx((1e-3 * 2e-4) ** 0.5, rel=1e-6)
    rates = [auto_learning_rate(n) for n in (1, 10**8, 5 * 10**8, 10**9, 3 * 10**9, 10**10)]
    assert rates == sorted(rates, reverse=True)


def test_a_part_of_a_fleet(tmp_path: Path) -> None:
    fleet = load_fleet(write(tmp_path, SHORTEST))
    assert [member.name for member in fleet.only(["tickets"]).members()] == ["tickets"]
    assert list(fleet.only(["tickets", "sentiment"]).adapters) == ["sentiment", "tickets"]
    with pytest.raises(UsageError, match="did you mean tickets"):
        fleet.only(["ticket"])
    with pytest.raises(UsageError, match="named twice"):
        fleet.only(["tickets", "tickets"])
