"""The cache of things built once: a folder appears whole under its name or not at all, whoever else builds it too."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from atoll.errors import ModelNotFound
from atoll.files import fsync_dir, write_atomic

# Called with what is being done and the fraction done, None where that is not known.
OnProgress = Callable[[str, float | None], None]


def cache_root() -> Path:
    """$ATOLL_CACHE, else $XDG_CACHE_HOME/atoll, else ~/.cache/atoll."""
    if own := os.environ.get("ATOLL_CACHE"):
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg).expanduser() if xdg else Path.home() / ".cache") / "atoll"


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, built by `build(empty folder)` unless it exists; a process that comes second waits for the first.

    Raises ModelNotFound when the disk does not take it, and whatever `build` raises; nothing is left behind then.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f".{folder.name}.lock"):
            if not folder.is_dir():
                _build(folder, build)
    except OSError as error:
        raise ModelNotFound(
            "the model could not be kept in the cache",
            where=str(folder),
            why=str(error),
            mend="free the disk or name another cache folder in ATOLL_CACHE",
        ) from error
    return folder


def file_digest(path: Path) -> str:
    """sha256 of a file's content in hex, kept by the file's path, size and time, so that big weights are read once."""
    path = path.resolve()
    status = path.stat()
    key = hashlib.sha256(f"{path}\n{status.st_size}\n{status.st_mtime_ns}".encode()).hexdigest()
    kept = cache_root() / "digests" / key
    with contextlib.suppress(OSError):
        return kept.read_text()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # A cache that cannot be written costs time, not correctness.
    with contextlib.suppress(OSError):
        write_atomic(kept, digest)
    return digest


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    prefix = f".{folder.name}.tmp"
    # The lock is ours, so whatever carries our prefix was left by a process that died.
    for stale in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
    try:
        build(temporary)
        temporary.chmod(0o755)
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        fsync_dir(temporary)
        temporary.rename(folder)
        fsync_dir(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
