"""`atoll tasks ls` and `atoll tasks show`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atoll.cli.tasks import ls, show
from atoll.errors import TaskNotFound
from atoll.tasks.task import builtin_tasks

TASK = """
name: mood
description: A mood.
dataset: {train: mood.csv}
prompt: {template: "Text: {text}\\nMood:", system: Name the mood.}
target_column: label
metrics: [accuracy]
example: {inputs: {text: "So\\ndull\\e[2J"}, target: bad}
"""


@pytest.fixture
def mood(tmp_path: Path) -> Path:
    (tmp_path / "mood.csv").write_text("text,label\n" + "".join(f"text {index},good\n" for index in range(20)))
    (tmp_path / "mood.yaml").write_text(TASK)
    return tmp_path / "mood.yaml"


def test_ls_names_every_built_in_task(capsys: pytest.CaptureFixture[str]) -> None:
    ls()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(builtin_tasks()), "below the names of the columns"
    ls(as_json=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == list(builtin_tasks())
    sst2 = next(row for row in rows if row["name"] == "glue_sst2")
    assert (sst2["labels"], sst2["gpt_4"], sst2["metrics"][0]) == (2, 0.942, "accuracy")


def test_a_terminal_gets_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    ls()
    out = capsys.readouterr().out
    assert "GPT-4" in out
    assert "0.942" in out
    assert all(name in out for name in builtin_tasks())


def test_sizes_are_told_where_the_rows_are_at_hand(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "glue_sst2"
    folder.mkdir()
    for split, number in (("train", 3), ("test", 2)):
        (folder / f"{split}.csv").write_text("sentence,label\n" + "".join(f"s {i},1\n" for i in range(number)))
    ls(as_json=True, data_root=tmp_path)
    sizes = {row["name"]: row["sizes"] for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert sizes["glue_sst2"] == {"train": 2, "validation": 1, "test": 2}
    assert sizes["dates"] == {"train": 2_000, "validation": 200, "test": 500}
    assert sizes["boolq"] == {}
    show("glue_sst2", data_root=tmp_path)
    assert "sizes:     train 2, validation 1, test 2" in capsys.readouterr().out


def test_show_describes_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    show("glue_sst2")
    out = capsys.readouterr().out
    assert "answer:    label: 0, 1" in out
    assert "GPT-4 0.942" in out
    assert "Gemma-2B tuned 0.954" in out
    show("glue_sst2", as_json=True)
    assert json.loads(capsys.readouterr().out)["target_column"] == "label"
    with pytest.raises(TaskNotFound):
        show("glue_sst3")


def test_the_trained_part_of_the_example_is_marked(mood: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(str(mood))
    out = capsys.readouterr().out
    assert out.endswith("    Name the mood.\n\n    Text: So\n    dull\\x1b[2J\n    Mood: [bad]\n")
    assert "sizes:     train 18, validation 2" in out


def test_a_base_shows_the_example_in_its_own_tokens(
    mood: Path, tiny_base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(str(mood), base_model=str(tiny_base_folder))
    out = capsys.readouterr().out
    assert " trained\n" in out
    assert "Mood:" in out.split(" trained\n")[1]
    assert out.rstrip().endswith("]")


def test_every_built_in_task_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for name in builtin_tasks():
        show(name)
        assert f"task:      {name} (" in capsys.readouterr().out
