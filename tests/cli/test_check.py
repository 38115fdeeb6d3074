"""`atoll check` over a tiny base: the report, the exit, and that nothing is trained or written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atoll.cli.check import check
from atoll.cli.check_report import visible
from atoll.cli.probing import obstacle
from atoll.errors import ConfigError, DataError, ModelNotFound, TaskNotFound
from atoll.memory import Memory
from atoll.tasks.estimate import FleetEstimate, MemberEstimate

TASK = """
name: mood
dataset: {{train: {train}}}
prompt: {{template: "Text: {{text}}"}}
target_column: label
metrics: [accuracy]
"""


def write_fleet(folder: Path, base: Path, tasks: dict[str, str], extra: str = "") -> Path:
    lines = [f"base_model: {base}", "adapters:", *(f"  {name}: {{task: {task}}}" for name, task in tasks.items())]
    path = folder / "fleet.yaml"
    path.write_text("\n".join([*lines, extra]) + "\n")
    return path


def write_task(folder: Path, name: str, csv: str) -> str:
    (folder / f"{name}.csv").write_text(csv)
    (folder / f"{name}.yaml").write_text(TASK.format(train=f"{name}.csv"))
    return f"./{name}.yaml"


def good_csv(number: int = 30) -> str:
    return "text,label\n" + "".join(f"some text {index},{('good', 'bad')[index % 2]}\n" for index in range(number))


@pytest.fixture
def fleet(tmp_path: Path, tiny_base_folder: Path) -> Path:
    return write_fleet(tmp_path, tiny_base_folder, {"one": write_task(tmp_path, "mood", good_csv()), "two": "dates"})


def test_the_report(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(fleet.parent.rglob("*"))
    check(fleet, probe=False)
    out = capsys.readouterr().out
    assert "one: mood\n  train      27 rows, 0 duplicates\n  validation 3 rows" in out
    assert "two: dates\n  train      2,000 rows" in out
    assert "labels     " in out
    assert "Text: some text" in out
    assert "[<|im_end|>]" in out
    assert "one: 6 steps" in out
    assert "estimate, without early stopping: about" in out
    assert "\x1b" not in out
    assert sorted(fleet.parent.rglob("*")) == before


def test_the_report_as_json(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(fleet, probe=False, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert set(report["adapters"]) == {"one", "two"}
    assert report["adapters"]["one"]["tokens"]["num_cut"] >= 0
    assert report["adapters"]["one"]["problems"] == []
    assert report["estimate"]["members"][0]["num_steps"] == 6
    assert report["estimate"]["cost_usd"] > 0


def test_trained_tokens_are_coloured_on_a_terminal(
    fleet: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    check(fleet, probe=False)
    assert "\x1b[30m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    check(fleet, probe=False)
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ("text,labels\na,good\n", "the column `label` is missing"),
        (good_csv(200) + "more,\n" * 2, "empty answers (`label`) in validation: 2"),
        ("text,label\n", "the train split of mood is empty"),
    ],
)
def test_problems_fail_after_all_adapters_were_looked_at(
    tmp_path: Path, tiny_base_folder: Path, capsys: pytest.CaptureFixture[str], csv: str, message: str
) -> None:
    bad, good = write_task(tmp_path, "bad", csv), write_task(tmp_path, "good", good_csv())
    fleet = write_fleet(tmp_path, tiny_base_folder, {"one": bad, "two": good})
    with pytest.raises(DataError, match="stands in the way of training") as caught:
        check(fleet, probe=False)
    assert caught.value.exit_code == 3
    out = capsys.readouterr().out
    assert message in out.split("problem: ")[1]
    assert "two: mood" in out
    with pytest.raises(DataError):
        check(fleet, probe=False, as_json=True)
    assert any(message in problem for problem in json.loads(capsys.readouterr().out)["adapters"]["one"]["problems"])


def test_an_unknown_metric_is_a_problem(
    tmp_path: Path, tiny_base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_task(tmp_path, "mood", good_csv())
    path = tmp_path / "mood.yaml"
    path.write_text(path.read_text().replace("[accuracy]", "[acuracy]"))
    with pytest.raises(DataError):
        check(write_fleet(tmp_path, tiny_base_folder, {"one": task}), probe=False)
    assert "acuracy" in capsys.readouterr().out


def test_a_label_cannot_steer_the_terminal(
    tmp_path: Path, tiny_base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = good_csv() + "\x1b[2Jx,\x1b[31mred\n" * 3
    check(write_fleet(tmp_path, tiny_base_folder, {"one": write_task(tmp_path, "mood", csv)}), probe=False)
    assert "\x1b" not in capsys.readouterr().out
    assert visible("a\x1b\nb", keep="\n") == "a\\x1b\nb"


def test_unknown_task_base_and_layer(tmp_path: Path, tiny_base_folder: Path) -> None:
    with pytest.raises(TaskNotFound):
        check(write_fleet(tmp_path, tiny_base_folder, {"one": "no_such_task"}), probe=False)
    task = write_task(tmp_path, "mood", good_csv())
    with pytest.raises(ModelNotFound):
        check(write_fleet(tmp_path, tmp_path / "nowhere", {"one": task}), probe=False)
    with pytest.raises(ConfigError, match="no linear layer"):
        check(
            write_fleet(tmp_path, tiny_base_folder, {"one": task}, "adapter: {target_modules: [nothing]}"), probe=False
        )


def test_a_probe_quotes_from_training_passes_and_its_quote_is_kept_for_the_run(
    tmp_path: Path, tiny_base_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = write_task(tmp_path, "mood", good_csv())
    fleet = write_fleet(tmp_path, tiny_base_folder, {"one": task, "two": task}, "output: here")
    check(fleet, adapter=["two"])
    out, err = capsys.readouterr()
    assert "two: 6 steps, " in out
    assert "one: " not in out
    assert "quote, without early stopping: " in out
    assert "training passes for about 20 s" in err
    check(fleet, as_json=True)
    quote = json.loads(capsys.readouterr().out)["quote"]
    kept = json.loads((tmp_path / "here" / "quote.json").read_bytes())
    assert quote == kept
    assert [member["name"] for member in kept["members"]] == ["one", "two"]
    assert kept["seconds"]["low"] < kept["seconds"]["expected"] < kept["seconds"]["high"]
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["quote.json"], "nothing else is kept"


def test_a_fleet_with_problems_is_not_probed(
    tmp_path: Path, tiny_base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = write_task(tmp_path, "bad", good_csv() + "more,\n" * 3), write_task(tmp_path, "good", good_csv())
    with pytest.raises(DataError):
        check(write_fleet(tmp_path, tiny_base_folder, {"one": bad, "two": good}, f"output: {tmp_path / 'run'}"))
    assert "probe" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("seconds", "memory_bytes", "why"),
    [(10.0, 10**9, None), (10_000.0, 10**9, "a single pass"), (10.0, 3 * 10**9, "GB of memory")],
)
def test_a_probe_that_would_take_too_long_or_too_much_is_not_begun(
    seconds: float, memory_bytes: int, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atoll.memory.main_memory", lambda: Memory(4 * 10**9, 2 * 10**9))
    member = MemberEstimate("a", num_steps=10, num_train_tokens=9_000, num_validation_tokens=1_000, num_params=1)
    found = obstacle(FleetEstimate((member,), memory_bytes, seconds), token_budget=1_000, budget_s=20)
    assert (found is None) if why is None else (found is not None and why in found)
