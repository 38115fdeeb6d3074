"""A command starts without a look at all that it imports for garbage; what runs long looks for it as Python does."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.cli.garbage import collect_seldom
from atoll.cli.main import app
from atoll.errors import ConfigError
from support.fleets import make_fleet

USUAL = gc.get_threshold()
FULL = 2
"""The generation of everything that has been there for long."""


@pytest.fixture
def seldom() -> Iterator[None]:
    collect_seldom()
    yield
    gc.set_threshold(*USUAL)


def test_heavy_imports_meet_no_full_collection() -> None:
    program = (
        "import gc, sys\n"
        "from atoll.cli.main import main\n"
        "sys.argv = ['atoll', '--version']\n"
        "try: main()\n"
        "except SystemExit: before = gc.get_stats()[2]['collections']\n"
        "import torch, transformers.modeling_utils\n"
        "print(gc.get_stats()[2]['collections'] - before, *gc.get_threshold()[:2])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split("\n")[1].split() == ["0", *map(str, USUAL[:FULL])]


@pytest.mark.parametrize(
    ("command", "work"),
    [("tune", "atoll.training.tune.TuneRun.run"), ("eval", "atoll.evaluation.fleet.evaluate_fleet")],
)
def test_what_runs_long_collects_as_usual(
    command: str, work: str, seldom: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def begin(*_: Any, **__: Any) -> None:
        seen.append((gc.get_threshold(), gc.get_freeze_count()))
        raise ConfigError("seen")

    frozen = gc.get_freeze_count()
    assert gc.get_threshold()[FULL] > USUAL[FULL]
    monkeypatch.setattr(work, begin)
    with pytest.raises(ConfigError, match="seen"):
        app([command, str(make_fleet(tmp_path).path), "--store", str(tmp_path / "store")], standalone_mode=False)
    assert seen == [(USUAL, frozen)]
