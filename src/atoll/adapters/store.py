"""The store: adapters on disk, addressed by content, named by `name@revision`.

    <root>/objects/<digest>/   adapter_config.json, adapter_model.safetensors, atoll.json, README.md
    <root>/names/<name>.json   the revisions of a name, oldest first

An object is complete before a name points to it, and both appear by one rename: a reader, or a crash at any instant,
sees the old state or the new one.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atoll.adapters.contract import AdapterContract, read_contract
from atoll.adapters.peft_io import MAX_BYTES, WEIGHTS_NAME, adapter_digest, read_adapter
from atoll.config.base import NAME_PATTERN
from atoll.config.explain import did_you_mean
from atoll.errors import AdapterInvalid, AdapterNotFound, AtollError, UsageError
from atoll.files import fsync_dir, write_atomic

CARD_NAME = "README.md"
_TEMPORARY = ".new-"
Revisions = list[dict[str, Any]]


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


def default_store_root() -> Path:
    """$ATOLL_STORE, else `atoll/store` in the XDG data folder."""
    if root := os.environ.get("ATOLL_STORE"):
        return Path(root)
    data_home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data_home) / "atoll" / "store"


class AdapterStore:
    """Publishes and finds adapters below one folder; safe to use from several processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def publish(self, name: str, folder: Path) -> StoredAdapter:
        """Copy a PEFT folder in as the next revision of `name` and return it; the same content again changes nothing.

        Raises AdapterInvalid if the folder is not an adapter, UsageError if the name is not allowed, AtollError if the
        store cannot be written.
        """
        check_name(name)
        source = StoredAdapter(name, 0, adapter_digest(folder), folder, read_contract(folder))
        read_adapter(folder, verify=source.verify)
        try:
            with self._locked():
                return self._add(name, source)
        except OSError as error:
            raise AtollError(
                f"{name} could not be stored",
                where=str(self.root),
                why=error.strerror,
                mend="see that the disk has room and the folder can be written; nothing was changed",
            ) from error

    def resolve(self, adapter_id: str) -> StoredAdapter:
        """Find `name` (its latest revision), `name@<revision>` or `name@<digest prefix>`. Raises AdapterNotFound."""
        name, _, wanted = adapter_id.partition("@")
        check_name(name)
        revisions = self._revisions(name)
        if not revisions:
            close = did_you_mean(name, self.names())
            raise AdapterNotFound(
                f"no adapter {name!r} in the store",
                where=str(self.root),
                mend=f"did you mean {close!r}?" if close else "see `atoll ls`, or make one with `atoll tune`",
            )
        if not wanted:
            return self._stored(name, revisions[-1])
        for entry in reversed(revisions):
            if wanted == str(entry["revision"]) or (len(wanted) >= 8 and entry["digest"].startswith(wanted)):
                return self._stored(name, entry)
        known = ", ".join(str(entry["revision"]) for entry in revisions)
        raise AdapterNotFound(f"{name!r} has no revision {wanted!r}", where=str(self.root), mend=f"it has {known}")

    def names(self) -> list[str]:
        """All names, sorted."""
        folder = self.root / "names"
        return sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []

    def list(self) -> list[StoredAdapter]:
        """The latest revision of every name."""
        return [self._stored(name, self._revisions(name)[-1]) for name in self.names()]

    def write_card(self, adapter: StoredAdapter, text: str) -> None:
        """Replace an adapter's model card; the card is not part of its digest."""
        write_atomic(adapter.folder / CARD_NAME, text)

    def _add(self, name: str, source: StoredAdapter) -> StoredAdapter:
        """The caller holds the lock."""
        self._copy_object(source, self.root / "objects" / source.digest)
        revisions = self._revisions(name)
        if not revisions or revisions[-1]["digest"] != source.digest:
            number = revisions[-1]["revision"] + 1 if revisions else 1
            created = datetime.now(UTC).isoformat(timespec="seconds")
            revisions.append({"revision": number, "digest": source.digest, "created": created})
            text = json.dumps({"name": name, "revisions": revisions}, indent=2) + "\n"
            write_atomic(self._name_path(name), text)
        return self._stored(name, revisions[-1])

    def _stored(self, name: str, entry: dict[str, Any]) -> StoredAdapter:
        folder = self.root / "objects" / entry["digest"]
        return StoredAdapter(name, entry["revision"], entry["digest"], folder, read_contract(folder))

    def _name_path(self, name: str) -> Path:
        return self.root / "names" / f"{name}.json"

    def _revisions(self, name: str) -> Revisions:
        path = self._name_path(name)
        try:
            revisions: Revisions = json.loads(path.read_bytes())["revisions"]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise AdapterInvalid(
                f"the list of revisions is damaged: {error}", where=str(path), mend="restore it from a backup"
            ) from None
        return revisions

    def _copy_object(self, source: StoredAdapter, target: Path) -> None:
        """Copy an adapter in, unless it is there already; damaged files are replaced."""
        if target.is_dir() and adapter_digest(target) == source.digest:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in target.parent.glob(_TEMPORARY + "*"):  # of a process that was killed: nobody else has the lock
            shutil.rmtree(leftover, ignore_errors=True)
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
