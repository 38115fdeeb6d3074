"""Adapters that can be had again, by a download or a computation: kept on disk within a limit in bytes.

    <root>/<key>/   adapter_config.json, adapter_model.safetensors, ..., kept.json (the adapter's digest)

An entry appears whole by one rename. It counts as used whenever it is found; the longest unused go first.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from atoll.adapters.peft_files import MAX_BYTES, adapter_digest
from atoll.errors import AdapterInvalid, Overloaded
from atoll.files import fsync_dir, storing, write_atomic
from atoll.log import get_logger

logger = get_logger(__name__)

RECORD_NAME = "kept.json"
# An entry that somebody was just given is about to be loaded.
KEEP_S = 60.0
STALE_S = 3600.0
_MAX_KNOWN = 4096

_Stats = tuple[tuple[int, int, int], ...]


class Kept(NamedTuple):
    """An adapter in the cache."""

    folder: Path
    digest: str


class AdapterCache:
    """Folders below one root, named by keys in hex; any thread may use it, and several processes."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._known: OrderedDict[str, tuple[_Stats, str]] = OrderedDict()
        self._lock = Lock()

    def find(self, key: str) -> Kept | None:
        """An entry whose files are what was put there; one whose files are damaged is dropped."""
        folder = self.root / key
        try:
            recorded = str(json.loads((folder / RECORD_NAME).read_bytes())["digest"])
            stats = _stats(folder)
            with self._lock:
                is_known = self._known.get(key) == (stats, recorded)
            if not is_known and adapter_digest(folder) != recorded:
                raise ValueError("the files are not those that were put there")
            os.utime(folder / RECORD_NAME)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AdapterInvalid) as error:
            logger.warning("the cached adapter %s is damaged and dropped: %s", key, error)
            with storing("a damaged adapter could not be dropped", self.root), self._locked():
                self._remove(folder)
            return None
        self._note(key, stats, recorded)
        return Kept(folder, recorded)

    def add(self, key: str, fill: Callable[[Path], None]) -> Kept:
        """Let `fill` write an adapter's files into an empty folder and keep it, unless another process did already.

        Raises Overloaded where the cache is full of entries in use, AdapterInvalid where one is larger than the cache,
        StorageError where the disk does not take it, and what `fill` raises; nothing is left behind then.
        """
        with storing("the adapter could not be kept", self.root):
            self._fill(key, fill)
        kept = self.find(key)
        if kept is None:
            raise Overloaded("the adapter left the cache at once", mend="send the request again")
        return kept

    def _fill(self, key: str, fill: Callable[[Path], None]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))
        try:
            fill(temporary)
            digest = adapter_digest(temporary)
            write_atomic(temporary / RECORD_NAME, json.dumps({"digest": digest}) + "\n")
            temporary.chmod(0o755)
            with self._locked():
                self._make_room(_size(temporary))
                if not (self.root / key).exists():  # else somebody was faster
                    temporary.rename(self.root / key)
                    fsync_dir(self.root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _note(self, key: str, stats: _Stats, digest: str) -> None:
        with self._lock:
            self._known[key] = stats, digest
            self._known.move_to_end(key)
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)

    def _make_room(self, num_bytes: int) -> None:
        """Drop the longest unused entries until there is room for `num_bytes` more."""
        if num_bytes > self.max_bytes:
            raise AdapterInvalid(f"the adapter has {num_bytes} bytes, the cache of adapters {self.max_bytes}")
        now_s = time.time()
        entries = []
        for folder in self.root.iterdir():
            if folder.name.startswith("."):
                if folder.is_dir() and now_s - folder.stat().st_mtime > STALE_S:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            entries.append((_used_at_s(folder), _size(folder), folder))
        excess = sum(size for _, size, _ in entries) + num_bytes - self.max_bytes
        for used_at_s, size, folder in sorted(entries):
            if excess <= 0:
                return
            if now_s - used_at_s < KEEP_S:
                break
            self._remove(folder)
            excess -= size
        if excess > 0:
            raise Overloaded("the cache of adapters is full of adapters in use", mend="try again in a minute")

    def _remove(self, folder: Path) -> None:
        """Take an entry away at once, then its files."""
        gone = Path(tempfile.mkdtemp(prefix=".old-", dir=self.root))
        with suppress(FileNotFoundError):
            folder.rename(gone / folder.name)
        shutil.rmtree(gone, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _stats(folder: Path) -> _Stats:
    found = [(folder / name).stat() for name in MAX_BYTES if (folder / name).is_file()]
    return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in found)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _used_at_s(folder: Path) -> float:
    """When an entry was last found; one without a record is nobody's."""
    with suppress(FileNotFoundError):
        return (folder / RECORD_NAME).stat().st_mtime
    return 0.0
