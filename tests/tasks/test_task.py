"""Tasks by name and by path."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.errors import ConfigError, TaskNotFound
from atoll.tasks.task import builtin_tasks, find_task


def test_built_in_tasks_are_valid_and_carry_their_files_name() -> None:
    names = builtin_tasks()
    assert {"glue_sst2", "conllpp", "viggo", "covid", "legal", "e2e_nlg", "dates", "sql", "support"} <= set(names)
    for name in names:
        assert find_task(name).name == name


def test_a_task_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ndataset: {test: data.csv}\nprompt: {template: '{a}'}\ntarget_column: b\nmetrics: [accuracy]\n"
    )
    task = find_task(str(path))
    assert task.name == "mine"
    assert task.dataset.test is not None
    assert task.dataset.test.path == str(tmp_path / "data.csv")
    path.write_text("name: mine\n")
    with pytest.raises(ConfigError):
        find_task(str(path))


def test_unknown_tasks(tmp_path: Path) -> None:
    with pytest.raises(TaskNotFound, match="did you mean glue_sst2"):
        find_task("glue_sst")
    with pytest.raises(TaskNotFound, match="`atoll tasks ls` lists the built-in ones"):
        find_task("qqqqqqqq")
    with pytest.raises(TaskNotFound, match="no such task file"):
        find_task(str(tmp_path / "none.yaml"))
