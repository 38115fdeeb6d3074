"""The store: adapters on disk, addressed by content, named by `name@revision`.

    <root>/objects/<digest>/   adapter_config.json, adapter_model.safetensors, atoll.json, README.md
    <root>/names/<name>.json   the revisions of a name, oldest first, and the number of the next one

An object is complete before a name points to it, and goes after the last name has; both appear and go by one rename: a
reader, or a crash at any instant, sees the old state or the new one.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from atoll.adapters.contract import AdapterContract, read_contract
from atoll.adapters.names import default_store_root as default_store_root
from atoll.adapters.names import stored_names
from atoll.adapters.peft_files import CONFIG_NAME, MAX_BYTES, WEIGHTS_NAME, adapter_digest, reading
from atoll.config.base import NAME_PATTERN
from atoll.config.explain import did_you_mean
from atoll.errors import AdapterInvalid, AdapterNotFound, StorageError, UsageError
from atoll.files import fsync_dir, storing, write_atomic
from atoll.log import get_logger

logger = get_logger(__name__)

CARD_NAME = "README.md"
_TEMPORARY = ".new-"
_GONE = ".gone-"
_OBJECT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter on disk. revision 0: a folder outside of the store."""

    name: str
    revision: int
    digest: str
    folder: Path
    contract: AdapterContract | None

    @property
    def id(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def size_bytes(self) -> int:
        return (self.folder / WEIGHTS_NAME).stat().st_size

    def verify(self, digest: str) -> None:
        """Raise AdapterInvalid unless `digest`, that of the bytes which were just read, is the adapter's own."""
        if digest == self.digest:
            return
        if self.revision == 0:
            raise AdapterInvalid(
                "the adapter's files changed while loading", where=str(self.folder), mend="send the request again"
            )
        raise AdapterInvalid(
            f"the files of {self.id} are damaged",
            where=str(self.folder),
            why=f"their digest is {digest[:12]}, they were stored with {self.digest[:12]}",
            mend=f"publish {self.name} again, or restore the folder from a backup",
        )

    def check_base(self, digest: str) -> None:
        """Raise AdapterInvalid if the contract names another base model than that of `digest`."""
        base = self.contract.base if self.contract else None
        if base is not None and base.digest != digest:
            raise AdapterInvalid(
                f"the adapter belongs to the base model {base.name!r}",
                where=self.id,
                why=f"its base has the digest {base.digest[:19]}, the one in use {digest[:19]}",
                mend=f"start with --base-model {base.name}",
            )


@dataclass(frozen=True)
class Revision:
    """One revision of a name. created: when it was stored, ISO 8601 in UTC."""

    revision: int
    digest: str
    created: str


@dataclass(frozen=True)
class Removed:
    """What `AdapterStore.remove` took away: ids, and the bytes on disk that nothing needs any more."""

    ids: tuple[str, ...]
    freed_bytes: int


Revisions = list[Revision]


@dataclass
class _Record:
    """A name's file. next_revision: a number is not given twice while its name is there."""

    revisions: Revisions
    next_revision: int = 1


class AdapterStore:
    """Publishes and finds adapters below one folder; safe to use from several processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._unreadable: set[str] = set()

    def publish(self, name: str, folder: Path) -> StoredAdapter:
        """Copy a PEFT folder in as the next revision of `name` and return it; the same content again changes nothing.

        Raises AdapterInvalid if the folder is not an adapter, UsageError if the name is not allowed, StorageError if
        the store cannot be written.
        """
        # It brings torch, which takes seconds to load and which whoever only looks has no use for.
        from atoll.adapters.peft_io import read_adapter

        check_name(name)
        with reading(folder):
            source = StoredAdapter(name, 0, adapter_digest(folder), folder, read_contract(folder))
            read_adapter(folder, verify=source.verify)
        with storing(f"{name} could not be stored", self.root), self._locked():
            return self._add(name, source)

    def resolve(self, adapter_id: str) -> StoredAdapter:
        """Find `name` (its latest revision), `name@<revision>` or `name@<digest prefix>`. Raises AdapterNotFound."""
        name, _, wanted = adapter_id.partition("@")
        revisions = self.revisions(name)
        return self._stored(name, _find(name, revisions, wanted, self.root) if wanted else revisions[-1])

    def revisions(self, name: str) -> Revisions:
        """All revisions of a name, oldest first; at least one. Raises AdapterNotFound."""
        check_name(name)
        if revisions := self._record(name).revisions:
            return revisions
        close = did_you_mean(name, self.names())
        raise AdapterNotFound(
            f"no adapter {name!r} in the store",
            where=str(self.root),
            mend=f"did you mean {close!r}?" if close else "see `atoll ls`, or make one with `atoll tune`",
        )

    def names(self) -> list[str]:
        """All names, sorted."""
        return stored_names(self.root)

    def list(self) -> list[StoredAdapter]:
        """The latest revision of every name; one that cannot be read is left out and told in the log, once."""
        found = []
        for name in self.names():
            try:
                if revisions := self._record(name).revisions:
                    found.append(self._stored(name, revisions[-1]))
            except AdapterNotFound:
                continue  # removed since its name was read
            except AdapterInvalid as error:
                if name not in self._unreadable:
                    self._unreadable.add(name)
                    logger.warning("adapter %s is left out: %s", name, error)
        return found

    def write_card(self, adapter: StoredAdapter, text: str) -> None:
        """Replace an adapter's model card; the card is not part of its digest. Raises AdapterNotFound if it is gone."""
        with self._locked():
            if not adapter.folder.is_dir():
                raise _gone(adapter.id, self.root)
            write_atomic(adapter.folder / CARD_NAME, text)

    def remove(self, adapter_id: str) -> Removed:
        """Forget a name with all its revisions, or one revision, and delete the objects that no name needs any more.

        Who reads such an object at this moment goes on, or finds none of it. Raises AdapterNotFound, AdapterInvalid if
        any list of revisions is damaged (nothing is removed then), and StorageError if the store cannot be written.
        """
        name, _, wanted = adapter_id.partition("@")
        check_name(name)
        try:
            with self._locked():
                revisions = self.revisions(name)
                removed = [_find(name, revisions, wanted, self.root)] if wanted else revisions
                self._needed()  # whoever cannot be read must not lose what it needs
                self._forget(name, removed)
                return Removed(tuple(f"{name}@{entry.revision}" for entry in removed), self._collect())
        except OSError as error:
            what = f"{adapter_id} could not be removed"
            raise StorageError(what, where=str(self.root), why=error.strerror) from error

    def _add(self, name: str, source: StoredAdapter) -> StoredAdapter:
        """The caller holds the lock."""
        self._copy_object(source, self.root / "objects" / source.digest)
        record = self._record(name)
        if not record.revisions or record.revisions[-1].digest != source.digest:
            created = datetime.now(UTC).isoformat(timespec="seconds")
            record.revisions.append(Revision(record.next_revision, source.digest, created))
            record.next_revision += 1
            self._write_record(name, record)
        return self._stored(name, record.revisions[-1])

    def _forget(self, name: str, removed: Collection[Revision]) -> None:
        """The caller holds the lock."""
        record = self._record(name)
        record.revisions = [entry for entry in record.revisions if entry not in removed]
        if record.revisions:
            self._write_record(name, record)
        else:
            self._name_path(name).unlink()
            fsync_dir(self.root / "names")

    def _collect(self) -> int:
        """Delete what no name points to; the caller holds the lock, so nobody points to it soon. Returns bytes."""
        objects, needed, freed_bytes = self.root / "objects", self._needed(), 0
        for folder in list(objects.iterdir()):
            if _OBJECT.fullmatch(folder.name) and folder.name not in needed and folder.is_dir():
                freed_bytes += sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
                folder.rename(objects / f"{_GONE}{folder.name}")
        self._sweep(objects)
        return freed_bytes

    def _needed(self) -> set[str]:
        return {entry.digest for name in self.names() for entry in self._record(name).revisions}

    def _sweep(self, objects: Path) -> None:
        """Delete what is on its way in or out, also of processes that were killed: nobody else has the lock."""
        for prefix in (_TEMPORARY, _GONE):
            for leftover in objects.glob(prefix + "*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def _stored(self, name: str, entry: Revision) -> StoredAdapter:
        folder = self.root / "objects" / entry.digest
        contract = read_contract(folder)
        if contract is None and not (folder / CONFIG_NAME).is_file():
            raise _gone(f"{name}@{entry.revision}", self.root)
        return StoredAdapter(name, entry.revision, entry.digest, folder, contract)

    def _name_path(self, name: str) -> Path:
        return self.root / "names" / f"{name}.json"

    def _record(self, name: str) -> _Record:
        path = self._name_path(name)
        try:
            fields = json.loads(path.read_bytes())
            revisions = [
                Revision(entry["revision"], entry["digest"], entry["created"]) for entry in fields["revisions"]
            ]
            last = revisions[-1].revision if revisions else 0
            return _Record(revisions, fields.get("next_revision", last + 1))
        except FileNotFoundError:
            return _Record([])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AdapterInvalid(
                f"the list of revisions is damaged: {error}", where=str(path), mend="restore it from a backup"
            ) from None

    def _write_record(self, name: str, record: _Record) -> None:
        write_atomic(self._name_path(name), json.dumps({"name": name} | asdict(record), indent=2) + "\n")

    def _copy_object(self, source: StoredAdapter, target: Path) -> None:
        """Copy an adapter in, unless it is there already; damaged files are replaced."""
        if target.is_dir() and adapter_digest(target) == source.digest:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        self._sweep(target.parent)
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=target.parent))
        try:
            for name in (*MAX_BYTES, CARD_NAME):
                if (source.folder / name).is_file():
                    _copy_file(source.folder / name, temporary / name)
            source.verify(adapter_digest(temporary))
            temporary.chmod(0o755)
            if target.is_dir():
                shutil.rmtree(target)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fsync_dir(target.parent)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _find(name: str, revisions: Sequence[Revision], wanted: str, root: Path) -> Revision:
    """The revision of a number or of the beginning of a digest. Raises AdapterNotFound."""
    for entry in reversed(revisions):
        if wanted == str(entry.revision) or (len(wanted) >= 8 and entry.digest.startswith(wanted)):
            return entry
    known = ", ".join(str(entry.revision) for entry in revisions)
    raise AdapterNotFound(f"{name!r} has no revision {wanted[:80]!r}", where=str(root), mend=f"it has {known}")


def _gone(adapter_id: str, root: Path) -> AdapterNotFound:
    return AdapterNotFound(
        f"{adapter_id} is gone", where=str(root), why="it was removed a moment ago, or its files were deleted by hand"
    )


def _copy_file(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def check_name(name: str) -> None:
    """Raise UsageError unless `name` is a plain lower-case name, which no path can hide in."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(
            f"{name[:80]!r} is not an adapter's name",
            why="a name has 1 to 64 of a-z, 0-9, '.', '_' and '-', and starts with a letter or digit",
        )
