"""Two runs do not share a folder, and a dead one does not keep it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.errors import UsageError
from atoll.training.run_lock import run_lock, running_process

HOLDER = """
import sys
from pathlib import Path
from atoll.training.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_and_told_who_is_at_work(tmp_path: Path) -> None:
    with run_lock(tmp_path / "run"):
        assert running_process(tmp_path / "run") == os.getpid()
        with (
            pytest.raises(UsageError, match="at work") as caught,
            run_lock(tmp_path / "run"),
        ):
            pass
        assert str(os.getpid()) in str(caught.value)
        with run_lock(tmp_path / "another"):
            pass
    assert running_process(tmp_path / "run") is None
    with run_lock(tmp_path / "run"):
        pass


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert running_process(tmp_path) == holder.pid
    with pytest.raises(UsageError, match=str(tmp_path)), run_lock(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    assert running_process(tmp_path) is None
    with run_lock(tmp_path):
        pass


def test_a_folder_without_a_run_has_no_process(tmp_path: Path) -> None:
    assert running_process(tmp_path / "nowhere") is None
