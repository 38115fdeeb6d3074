"""Lines that outlive the process: each is with the kernel before `append` returns, so that kill -9 loses none.

A folder belongs to one database. Every server has a file of its own in it, locked while it writes there: a file that
nobody holds was left by a server that has ended, or is full, and whoever finds it takes it over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

from atoll.errors import UsageError
from atoll.log import get_logger

logger = get_logger(__name__)

SUFFIX = ".jsonl"
MAX_FILE_BYTES = 16 << 20


class Journal:
    """One server's file. `append` may be called from any thread."""

    def __init__(self, folder: Path, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        """Raises UsageError if the folder cannot be written."""
        self._folder = folder
        self._max_file_bytes = max_file_bytes
        self._lock = threading.Lock()
        self._unwritten = b""
        self._is_refused = False
        self._full: list[tuple[Path, int]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path, self._descriptor = _new_file(folder)
        except OSError as error:
            raise UsageError(f"cannot write to {folder}", why=error.strerror) from None

    @property
    def is_stuck(self) -> bool:
        """Whether the disk has refused something that is still to be written; tries once more."""
        if self._unwritten:
            self.append(b"")
        return bool(self._unwritten)

    def append(self, line: bytes) -> None:
        """Write a line with its end. What the disk refuses is kept, and written before the next one."""
        with self._lock:
            self._unwritten += line
            try:
                while self._unwritten:
                    self._unwritten = self._unwritten[os.write(self._descriptor, self._unwritten) :]
                if os.lseek(self._descriptor, 0, os.SEEK_CUR) >= self._max_file_bytes:
                    self._turn_over()
            except OSError as error:
                if not self._is_refused:
                    logger.error("the journal of usage cannot be written: %s", error.strerror)
                self._is_refused = True
            else:
                self._is_refused = False

    @property
    def full(self) -> list[Path]:
        """Files that are complete, oldest first. They stay locked until they are let go of."""
        with self._lock:
            return [path for path, _ in self._full]

    def let_go(self, path: Path) -> None:
        """One of the full files is done with."""
        with self._lock:
            for entry in self._full:
                if entry[0] == path:
                    self._full.remove(entry)
                    os.close(entry[1])
                    return

    def close(self) -> None:
        """Leave all files to whoever takes them over. To be called once."""
        with self._lock:
            for descriptor in (self._descriptor, *(descriptor for _, descriptor in self._full)):
                os.close(descriptor)
            self._full.clear()
            self._descriptor = -1  # the number may be another file's soon
            self.path = Path()

    def _turn_over(self) -> None:
        path, descriptor = _new_file(self._folder)
        self._full.append((self.path, self._descriptor))
        self.path, self._descriptor = path, descriptor


def _new_file(folder: Path) -> tuple[Path, int]:
    """An empty file that is locked from the moment on at which it has its name."""
    path = folder / f"{secrets.token_hex(16)}{SUFFIX}"
    hidden = path.with_suffix(".new")
    descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        hidden.rename(path)
    except OSError:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            hidden.unlink()
        raise
    return path, descriptor


@contextlib.contextmanager
def taken_over(path: Path) -> Iterator[bool]:
    """Whether the file is nobody's; then it is the caller's until the end of the block, who may remove it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        # Somebody else may have taken it over, and removed it, between the two calls above.
        yield os.fstat(descriptor).st_nlink > 0
    finally:
        os.close(descriptor)
