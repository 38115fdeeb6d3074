"""What every remote source of adapters does: say what it has, and hand over a few files within limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from atoll.adapters.addresses import SourceUnavailable
from atoll.adapters.contract import CONTRACT_NAME
from atoll.adapters.peft_files import CONFIG_NAME, MAX_BYTES, WEIGHTS_NAME
from atoll.adapters.store import CARD_NAME
from atoll.errors import AdapterInvalid
from atoll.files import storing

FILES = (CONFIG_NAME, CONTRACT_NAME, CARD_NAME, WEIGHTS_NAME)
"""All that is ever downloaded, the small files first; nothing of it can run."""
MAX_CARD_BYTES = 1 << 20
_READ_AT_ONCE = 1 << 18
_NOT_KEPT = "the adapter could not be kept"


@dataclass(frozen=True)
class Listing:
    """An adapter at its source. revision: names this very content; files: those of FILES that are there."""

    name: str
    revision: str
    files: tuple[str, ...]


class Budget:
    """What one adapter may cost in bytes and seconds, over all its files."""

    def __init__(self, max_bytes: int, max_seconds: float) -> None:
        self._max_bytes = max_bytes
        self._num_left = max_bytes
        self._max_seconds = max_seconds
        self._deadline_s = time.monotonic() + max_seconds

    def check_time(self) -> None:
        """Raise SourceUnavailable once the time is up."""
        if time.monotonic() > self._deadline_s:
            raise SourceUnavailable(f"the adapter did not come within {self._max_seconds:g} seconds")

    def read(self, read: Callable[[int], bytes], max_bytes: int) -> bytes:
        """All that `read` gives, a part at a time. Raises SourceUnavailable if it is more than max_bytes."""
        parts, num_bytes = [], 0
        while data := read(_READ_AT_ONCE):
            self.check_time()
            num_bytes += len(data)
            if num_bytes > max_bytes:
                raise SourceUnavailable(f"the source's answer is larger than {max_bytes} bytes")
            parts.append(data)
        return b"".join(parts)

    def save(self, read: Callable[[int], bytes], path: Path) -> None:
        """Write all that `read` gives to one of FILES.

        Raises AdapterInvalid if that is more than there may be, StorageError if the disk does not take it.
        """
        num_bytes, max_bytes = 0, MAX_BYTES.get(path.name, MAX_CARD_BYTES)
        # Unbuffered: closing writes nothing, so an OSError outside of `storing` is the network's, not the disk's.
        with storing(_NOT_KEPT, path):
            file = path.open("xb", buffering=0)
        with file:
            while data := read(_READ_AT_ONCE):
                self.check_time()
                num_bytes += len(data)
                self._num_left -= len(data)
                if num_bytes > max_bytes:
                    raise AdapterInvalid(f"{path.name} is larger than {max_bytes} bytes")
                if self._num_left < 0:
                    raise AdapterInvalid(f"the adapter is larger than the {self._max_bytes} bytes that one may have")
                with storing(_NOT_KEPT, path):
                    while data:
                        data = data[file.write(data) :]


class Source(Protocol):
    """A place that adapters come from."""

    def look(self, adapter_id: str, token: str | None, budget: Budget) -> Listing:
        """What there is under an id for the token's owner.

        Raises AdapterNotFound, RequestInvalid for what cannot be an id here, AdapterInvalid for what is no adapter,
        SourceUnavailable, Overloaded.
        """

    def fetch(self, listing: Listing, folder: Path, token: str | None, budget: Budget) -> None:
        """Write the files of a listing, as they were then, into an empty folder. Raises as `look` does."""


def wanted_files(names: Iterable[str], adapter_id: str) -> tuple[str, ...]:
    """Those of FILES that are among the names. Raises AdapterInvalid where they make no adapter."""
    there = set(names)
    if missing := [name for name in (CONFIG_NAME, WEIGHTS_NAME) if name not in there]:
        pickled = missing == [WEIGHTS_NAME] and "adapter_model.bin" in there
        raise AdapterInvalid(
            f"{adapter_id[:80]!r} has no {missing[0]}",
            why="only a pickled adapter_model.bin is there, which could run code"
            if pickled
            else "it is no PEFT adapter",
        )
    return tuple(name for name in FILES if name in there)
