"""A command starts without a look at all that it imports for garbage; what runs long looks for it as Python does."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from atoll.cli.garbage import collect_as_usual, collect_seldom


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_what_runs_long_collects_as_usual_but_for_what_was_imported() -> None:
    usual = gc.get_threshold()
    collect_seldom()
    assert gc.get_threshold()[:2] == usual[:2]
    assert gc.get_threshold()[2] > usual[2]
    collect_as_usual()
    assert gc.get_threshold() == usual
    assert gc.get_freeze_count() > 1000


def test_heavy_imports_meet_no_full_collection() -> None:
    program = "from atoll.cli.garbage import collect_seldom; collect_seldom(); import gc, transformers, torch\n"
    program += "print(gc.get_stats()[2]['collections'])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert int(done.stdout) == 0
