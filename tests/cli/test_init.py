"""`atoll init`, and Ludwig files given to `check`, `tune` and `eval`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from atoll.cli.main import app
from atoll.config.load import load_fleet, load_task
from atoll.errors import AtollError, ConfigError, UsageError
from atoll.tasks.dataset import load_split
from atoll.tasks.task import find_task

LUDWIG = """\
model_type: llm
base_model: {base}
input_features:
  - {{name: text, type: text}}
output_features:
  - {{name: label, type: text}}
prompt: {{template: "{{text}} ->"}}
adapter: {{type: lora, r: 4, target_modules: [q_proj, v_proj]}}
trainer: {{type: finetune, epochs: 1, batch_size: 2, gradient_accumulation_steps: 4, learning_rate: 0.001}}
preprocessing: {{global_max_sequence_length: 64}}
generation: {{max_new_tokens: 4, do_sample: false}}
backend: {{type: local}}
"""


def atoll(*arguments: str | Path, fails: bool = False) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert (result.exception is not None) == fails, result.output
    return result


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATOLL_STORE", str(tmp_path / "store"))
    rows = "".join(f"some text {number},{('good', 'bad')[number % 2]}\n" for number in range(60))
    (tmp_path / "my data.csv").write_text(f"text,label\n{rows}")
    return tmp_path


def test_a_data_file_becomes_a_fleet_that_can_be_checked(folder: Path, tiny_base_folder: Path) -> None:
    said = atoll("init", "my data.csv", "--base-model", tiny_base_folder).output
    assert "answer: label" in said
    assert "next:  atoll check fleet.yaml" in said
    (member,) = load_fleet("fleet.yaml").members()
    assert (member.name, member.task_ref) == ("my-data", str(folder / "./my-data.yaml"))
    assert find_task(member.task_ref).labels == ("bad", "good")
    assert "my-data: my-data\n" in atoll("check", "fleet.yaml", "--no-probe").output


def test_without_a_file_an_example_is_made(folder: Path) -> None:
    atoll("init", "--output", "new")
    task = load_task(folder / "new" / "tickets.yaml")
    assert len(load_split(task, "train")) == pytest.approx(240, abs=5)
    assert task.target_column == "queue"


def test_runs_of_two_folders_stay_apart(folder: Path) -> None:
    for name in ("one", "two"):
        atoll("init", "my data.csv", "--output", name)
        assert load_fleet(f"{name}/fleet.yaml").output == f"runs/{name}"
    atoll("init", "my data.csv")
    assert load_fleet("fleet.yaml").output == "runs/fleet"


def test_nothing_is_written_over_without_being_told(folder: Path) -> None:
    atoll("init", "my data.csv")
    (folder / "fleet.yaml").write_text("mine")
    refused = atoll("init", "my data.csv", fails=True)
    assert isinstance(refused.exception, UsageError)
    assert "--force" in str(refused.exception)
    assert (folder / "fleet.yaml").read_text() == "mine"
    atoll("init", "my data.csv", "--force")
    assert load_fleet("fleet.yaml").adapters


def test_a_file_that_makes_no_task_leaves_nothing_behind(folder: Path) -> None:
    (folder / "bad.csv").write_text("a,b\n1,2\n")
    assert isinstance(atoll("init", "bad.csv", fails=True).exception, AtollError)
    assert not (folder / "fleet.yaml").exists()


def test_a_data_file_in_another_folder_is_named_by_its_path(folder: Path) -> None:
    atoll("init", "my data.csv", "--output", "deep/er")
    task = load_task(folder / "deep" / "er" / "my-data.yaml")
    assert len(load_split(task, "train")) == 48


def test_the_report_as_json(folder: Path) -> None:
    report = json.loads(atoll("init", "my data.csv", "--json").output)
    assert report["fleet"] == "fleet.yaml"
    assert "answer: label" in report["notes"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dataset", "x.csv"],
        ["--target", "a"],
        ["my data.csv", "--from", "l.yaml"],
        ["--from", "l.yaml", "--input", "a"],
    ],
)
def test_options_that_do_not_go_together(arguments: list[str]) -> None:
    assert isinstance(atoll("init", *arguments, fails=True).exception, UsageError)


@pytest.fixture
def ludwig(folder: Path, tiny_base_folder: Path) -> Path:
    path = folder / "l.yaml"
    path.write_text(LUDWIG.format(base=tiny_base_folder))
    return path


def test_a_ludwig_file_becomes_a_fleet_with_its_notes(folder: Path, ludwig: Path) -> None:
    said = atoll("init", "--from", ludwig, "--dataset", "my data.csv", "--output", "out").output
    assert "`backend`" in said
    fleet = load_fleet(folder / "out" / "fleet.yaml")
    assert fleet.output == "runs/out"
    (member,) = fleet.members()
    assert (member.adapter.r, member.trainer.effective_batch_size) == (4, 8)
    assert len(load_split(find_task(member.task_ref), "train")) == 42
    assert "# `backend`:" in (folder / "out" / "fleet.yaml").read_text()


def test_a_ludwig_file_stays_when_its_translation_is_written_beside_it(folder: Path, ludwig: Path) -> None:
    before = ludwig.read_text()
    for _ in range(2):
        atoll("init", "--from", "l.yaml", "--dataset", "my data.csv", "--force")
        assert ludwig.read_text() == before
    (member,) = load_fleet(folder / "fleet.yaml").members()
    assert (member.name, member.task_ref) == ("l", str(folder / "l-task.yaml"))


def test_a_fleet_file_is_not_taken_for_ludwigs(folder: Path) -> None:
    (folder / "f.yaml").write_text("adapters: {a: {task: dates}}\n")
    assert isinstance(atoll("init", "--from", "f.yaml", fails=True).exception, ConfigError)
    refused = atoll("check", "f.yaml", "--dataset", "my data.csv", fails=True)
    assert isinstance(refused.exception, UsageError)


def test_a_ludwig_file_is_tuned_and_evaluated_as_it_is(folder: Path, ludwig: Path) -> None:
    (folder / "my data.csv").rename(folder / "l.csv")
    assert "l: l\n" in atoll("check", ludwig, "--no-probe").output
    assert "note: `backend`" in atoll("tune", ludwig).output
    assert "│ l" in atoll("eval", ludwig, "--limit", "4").output
    assert (folder / "runs" / "l" / "eval" / "results.json").is_file()


def test_a_ludwig_file_takes_its_data_set_from_the_command_line(folder: Path, ludwig: Path) -> None:
    said = atoll("tune", ludwig, "--dataset", "my data.csv").output
    assert "translated to runs/l/fleet.yaml" in said
    assert "next: atoll eval runs/l/fleet.yaml" in said
    assert load_fleet("runs/l/fleet.yaml").output == "runs/l"
