"""Atomic file writes: a reader sees the old content or the new one, never a part. What a disk refuses is explained."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from atoll.errors import StorageError


def fsync_dir(folder: Path) -> None:
    """Make the names inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def storing(what: str, place: Path) -> Iterator[None]:
    """Raise StorageError(what) for any OSError in the block; clients are told what, the place is for the log alone."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            what,
            where=str(place),
            why=error.strerror,
            mend="see that the disk has room and the folder can be written; nothing was changed",
        ) from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` through a temporary file in the same folder; durable when it returns."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    fsync_dir(path.parent)
