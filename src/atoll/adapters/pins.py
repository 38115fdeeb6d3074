"""Which adapters keep a slot of the device whoever else asks."""

from __future__ import annotations

from collections.abc import Iterator

from atoll.adapters.store import StoredAdapter
from atoll.errors import UsageError


class Pins:
    """Pinned adapters by name: a newer revision takes over the pin once it is asked for. The caller locks.

    num_slots: of the device; one of them is never pinned.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._adapters: dict[str, StoredAdapter] = {}
        self.digests: frozenset[str] = frozenset()

    def __iter__(self) -> Iterator[StoredAdapter]:
        return iter(self._adapters.values())

    def add(self, adapter: StoredAdapter) -> None:
        """Pin an adapter, in place of another revision of it. Raises UsageError if no slot would be left for others."""
        num_others = sum(name != adapter.name for name in self._adapters)
        if num_others + 1 >= self._num_slots:
            raise UsageError(
                f"the adapter {adapter.id} cannot be pinned",
                why=f"{num_others} of {self._num_slots} slots are pinned, and one must stay for others",
                mend="unpin another adapter, or start with more slots",
            )
        self._put(self._adapters | {adapter.name: adapter})

    def follow(self, adapter: StoredAdapter) -> bool:
        """Note that an adapter is asked for; returns whether it has taken over the pin of an older revision."""
        pinned = self._adapters.get(adapter.name)
        if pinned is None or adapter.revision <= pinned.revision:
            return False
        self._put(self._adapters | {adapter.name: adapter})
        return True

    def discard(self, name: str) -> None:
        """Unpin an adapter, if it is pinned."""
        self._put({key: adapter for key, adapter in self._adapters.items() if key != name})

    def _put(self, adapters: dict[str, StoredAdapter]) -> None:
        self._adapters = adapters
        # Made anew and not changed, so that the scheduler reads it without the lock.
        self.digests = frozenset(adapter.digest for adapter in adapters.values())
