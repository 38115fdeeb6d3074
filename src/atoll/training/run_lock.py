"""Only one `atoll tune` works in a run's folder at a time.

The kernel holds the lock for as long as the process lives: one that was killed leaves none behind.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atoll.errors import UsageError

LOCK_NAME = "tune.lock"
# `running_process` holds the lock for a moment while it looks.
_NUM_TRIES = 5
_PAUSE_S = 0.02


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the folder of a run. Raises UsageError if another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _locked(descriptor):
            process = os.read(descriptor, 32).decode("ascii", "replace").strip()
            raise UsageError(
                "another `atoll tune` is at work in this run's folder",
                where=str(folder),
                why=f"its process is {process or 'not known'}",
                mend="wait for it, stop it with Ctrl-C or SIGTERM, or give this fleet another `output`",
            )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    for attempt in range(_NUM_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(_PAUSE_S * (attempt + 1 < _NUM_TRIES))
    return False


def running_process(folder: Path) -> int | None:
    """The process that tunes in this run's folder now, if there is one."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        text = os.read(descriptor, 32)
        return int(text) if text.strip().isdigit() else None
    finally:
        os.close(descriptor)
