"""Turns the adapter id of a request into an adapter on disk, and lets no path out of the allowed folders."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from atoll.adapters.contract import read_contract
from atoll.adapters.peft_files import CONFIG_NAME, MAX_BYTES, adapter_digest
from atoll.adapters.store import AdapterStore, StoredAdapter
from atoll.errors import AdapterInvalid, AdapterNotFound, UsageError

MAX_ID_CHARS = 512
# File systems count time in ticks: a file that is written again this soon may look unchanged.
SETTLED_AFTER_NS = 2_000_000_000
MAX_TRIES = 3

_Stats = list[tuple[int, int, int, int]]


class AdapterCatalog:
    """The store's adapters, and PEFT folders below the allow-listed `adapter_roots`."""

    def __init__(self, store: AdapterStore, adapter_roots: Sequence[Path] = ()) -> None:
        self.store = store
        self._roots = [root.resolve() for root in adapter_roots]
        self._digests: dict[Path, tuple[_Stats, str]] = {}
        self._unloaded: set[str] = set()

    def resolve(self, adapter_id: str, source: str | None = None) -> StoredAdapter:
        """source None: a store name[@revision]. "local": a path below an adapter root, absolute or relative to one.

        Raises AdapterNotFound (also for paths outside of the roots: what lies there is nobody's business), UsageError.
        """
        if not adapter_id or len(adapter_id) > MAX_ID_CHARS or "\0" in adapter_id:
            raise UsageError("an adapter id has 1 to 512 characters and no NUL")
        if source in (None, "store"):
            if (name := adapter_id.partition("@")[0]) in self._unloaded:
                raise AdapterNotFound(f"no adapter {name!r} in the store", mend="load it again")
            return self.store.resolve(adapter_id)
        if source != "local":
            raise UsageError(f"adapter_source {source!r} is not supported", mend="use local, or leave it out")
        return self._local(adapter_id)

    def list(self) -> list[StoredAdapter]:
        """The latest revision of every adapter in the store, but for those that are unloaded."""
        return [adapter for adapter in self.store.list() if adapter.name not in self._unloaded]

    def load(self, name: str, path: str) -> StoredAdapter:
        """Store the PEFT folder at a path below an adapter root as the next revision of `name`.

        Raises AdapterNotFound, AdapterInvalid, and UsageError for a name that is not allowed.
        """
        adapter = self.store.publish(name, self.resolve(path, "local").folder)
        self._unloaded.discard(name)
        return adapter

    def unload(self, name: str) -> None:
        """Know an adapter of the store no more, until it is loaded or the process starts anew. Raises AdapterNotFound.

        Requests that have begun go on; what is stored stays.
        """
        self.resolve(name)
        self._unloaded.add(name.partition("@")[0])

    def is_unloaded(self, name: str) -> bool:
        """Whether an adapter of the store is unknown because somebody has unloaded it."""
        return name in self._unloaded

    def restore(self, name: str) -> StoredAdapter:
        """Know an adapter of the store again. Raises AdapterNotFound where it is not in the store."""
        adapter = self.store.resolve(name)
        self._unloaded.discard(adapter.name)
        return adapter

    def _local(self, path: str) -> StoredAdapter:
        for root in self._roots:
            if (folder := _find(root, path)) is not None:
                return self._read(path, folder)
        raise AdapterNotFound(
            f"no adapter at {path!r} below the adapter roots",
            mend="start the server with --adapter-root DIR and give the path of a PEFT folder below it",
        )

    def _read(self, path: str, folder: Path) -> StoredAdapter:
        """The adapter with a digest and a contract that belong together, though its files may be replaced meanwhile."""
        for _ in range(MAX_TRIES):
            with suppress(OSError):  # a file that was there a moment ago
                stats = _stats(folder)
                known_stats, digest = self._digests.get(folder, (None, ""))
                if known_stats != stats:
                    digest = adapter_digest(folder)
                contract = read_contract(folder)
                if stats and _stats(folder) == stats:
                    if time.time_ns() - max(stats)[0] > SETTLED_AFTER_NS:
                        self._digests[folder] = stats, digest
                    return StoredAdapter(path, 0, digest, folder, contract)
        raise AdapterInvalid("the adapter's files keep changing", where=path, mend="send the request again")


def _stats(folder: Path) -> _Stats:
    """What changes when one of the adapter's files does; the time of the last change, in nanoseconds, first."""
    stats = [(folder / name).stat() for name in MAX_BYTES if (folder / name).is_file()]
    return [(stat.st_ctime_ns, stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats]


def _find(root: Path, path: str) -> Path | None:
    """The folder of an adapter if there is one below the root."""
    with suppress(OSError, RuntimeError):  # a link that leads to itself, a name that is too long
        # Resolved first: neither `..` nor a link leads out of a root.
        folder = (root / path).resolve()
        if folder.is_relative_to(root) and (folder / CONFIG_NAME).is_file() and _plain_files(folder, root):
            return folder
    return None


def _plain_files(folder: Path, root: Path) -> bool:
    """Whether the adapter's files themselves stay below the root: a link inside the folder may point elsewhere."""
    return all((folder / name).resolve().is_relative_to(root) for name in MAX_BYTES)
