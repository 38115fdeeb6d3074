"""Turns the adapter id of a request into an adapter on disk, and lets no path out of the allowed folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from atoll.adapters.contract import read_contract
from atoll.adapters.peft_io import CONFIG_NAME
from atoll.adapters.store import ADAPTER_FILES, AdapterStore, StoredAdapter, adapter_digest
from atoll.errors import AdapterNotFound, UsageError

MAX_ID_CHARS = 512


class AdapterCatalog:
    """The store's adapters, and PEFT folders below the allow-listed `adapter_roots`."""

    def __init__(self, store: AdapterStore, adapter_roots: Sequence[Path] = ()) -> None:
        self.store = store
        self._roots = [root.resolve() for root in adapter_roots]
        self._digests: dict[tuple[Path, tuple[int, ...]], str] = {}
        self._lock = Lock()

    def resolve(self, adapter_id: str, source: str | None = None) -> StoredAdapter:
        """source None: a store name[@revision]. "local": a path below an adapter root, absolute or relative to one.

        Raises AdapterNotFound (also for paths outside of the roots: what lies there is nobody's business), UsageError.
        """
        if not adapter_id or len(adapter_id) > MAX_ID_CHARS or "\0" in adapter_id:
            raise UsageError("an adapter id has 1 to 512 characters and no NUL")
        if source in (None, "store"):
            return self.store.resolve(adapter_id)
        if source != "local":
            raise UsageError(f"adapter_source {source!r} is not supported", mend="use local, or leave it out")
        return self._local(adapter_id)

    def list(self) -> list[StoredAdapter]:
        """The latest revision of every adapter in the store."""
        return self.store.list()

    def _local(self, path: str) -> StoredAdapter:
        for root in self._roots:
            folder = (root / path).resolve()
            # Resolved first: neither `..` nor a link leads out of a root.
            if folder.is_relative_to(root) and (folder / CONFIG_NAME).is_file() and _plain_files(folder, root):
                return StoredAdapter(path, 0, self._digest(folder), folder, read_contract(folder))
        raise AdapterNotFound(
            f"no adapter at {path!r} below the adapter roots",
            mend="start the server with --adapter-root DIR and give the path of a PEFT folder below it",
        )

    def _digest(self, folder: Path) -> str:
        """The folder's content digest; hashed again only when a file changed."""
        stats = [(folder / name).stat() for name in ADAPTER_FILES if (folder / name).is_file()]
        key = (folder, tuple(n for stat in stats for n in (stat.st_size, stat.st_mtime_ns, stat.st_ino)))
        with self._lock:
            if key not in self._digests:
                self._digests = {k: v for k, v in self._digests.items() if k[0] != folder}
                self._digests[key] = adapter_digest(folder)
            return self._digests[key]


def _plain_files(folder: Path, root: Path) -> bool:
    """Whether the adapter's files themselves stay below the root: a link inside the folder may point elsewhere."""
    return all((folder / name).resolve().is_relative_to(root) for name in ADAPTER_FILES)
