"""`atoll tasks ls` and `atoll tasks show`."""

from __future__ import annotations

import json

import pytest

from atoll.cli.tasks import ls, show
from atoll.errors import TaskNotFound


def test_ls_names_every_built_in_task(capsys: pytest.CaptureFixture[str]) -> None:
    ls()
    assert "glue_sst2" in capsys.readouterr().out
    ls(as_json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"conllpp", "dates"} <= {line["name"] for line in lines}


def test_show_describes_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    show("glue_sst2")
    out = capsys.readouterr().out
    assert "answer:    label: 0, 1" in out
    assert "GPT-4 0.942" in out
    show("glue_sst2", as_json=True)
    assert json.loads(capsys.readouterr().out)["target_column"] == "label"
    with pytest.raises(TaskNotFound):
        show("glue_sst3")
