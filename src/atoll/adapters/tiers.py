"""The tier between disk and device: adapters that were read and checked, in host memory, within a limit in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from atoll.adapters.peft_io import AdapterWeights
from atoll.adapters.store import StoredAdapter
from atoll.memory import main_memory

# What is left over holds the KV cache, the base model and everybody else's programs.
HOST_SHARE = 0.2

MayGo = Callable[[str], bool]
"""Whether the adapter of a digest may be evicted."""


def default_host_bytes() -> int:
    """A share of the memory that is free now."""
    return int(main_memory().available * HOST_SHARE)


@dataclass(kw_only=True)
class TierStats:
    """Counts since the start; num_loading, num_in_host and bytes as things stand.

    num_slot_hits: acquired without any load. num_host_hits: loads that found the adapter in host memory. num_reads:
    from files. num_loads: into slots. read_s, copy_s: seconds that loader threads spent on reading and checking files
    and on copying into slots.
    """

    num_slot_hits: int = 0
    num_host_hits: int = 0
    num_reads: int = 0
    num_loads: int = 0
    num_loading: int = 0
    num_failures: int = 0
    num_slot_evictions: int = 0
    num_host_evictions: int = 0
    read_s: float = 0.0
    copy_s: float = 0.0
    num_in_host: int = 0
    host_bytes: int = 0
    max_host_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class TieredAdapter:
    """Where an adapter is, and how many requests use it now."""

    adapter: StoredAdapter
    tier: Literal["device", "host"]
    num_users: int
    is_pinned: bool


@dataclass
class _Held:
    adapter: StoredAdapter
    num_bytes: int
    weights: AdapterWeights | None = None


class HostTier:
    """Adapters in host memory, least recently used first. Its owner holds a lock around every call.

    Room is taken before the files are read, so that what is being read counts against max_bytes too.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.num_evictions = 0
        self._held: OrderedDict[str, _Held] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        """Whether the adapter can be copied from here at once."""
        return (held := self._held.get(digest)) is not None and held.weights is not None

    def __len__(self) -> int:
        """How many adapters have room here, those that are being read among them."""
        return len(self._held)

    def __iter__(self) -> Iterator[StoredAdapter]:
        """The adapters that are read, least recently used first."""
        return (held.adapter for held in self._held.values() if held.weights is not None)

    def find(self, digest: str) -> AdapterWeights | None:
        """An adapter's weights; it counts as used now."""
        if digest not in self:
            return None
        self._held.move_to_end(digest)
        return self._held[digest].weights

    def size_of(self, digest: str) -> int:
        """Bytes that an adapter takes here; 0 if it is not here."""
        return self._held[digest].num_bytes if digest in self._held else 0

    def reserve(self, adapter: StoredAdapter, num_bytes: int, may_go: Sequence[MayGo]) -> bool:
        """Take room for an adapter that will be `put`; False, and nobody is evicted, if there is not enough.

        may_go: classes of adapters that may be evicted for it, the first before the second, each by last use.
        """
        missing = self.num_bytes + num_bytes - self.max_bytes
        victims: dict[str, None] = {}
        for is_in_class in may_go:
            for digest, held in self._held.items():
                if missing <= 0:
                    break
                if held.weights is not None and digest not in victims and is_in_class(digest):
                    victims[digest] = None
                    missing -= held.num_bytes
        if missing > 0:
            return False
        for digest in victims:
            self.drop(digest)
        self.num_evictions += len(victims)
        self._held[adapter.digest] = _Held(adapter, num_bytes)
        self.num_bytes += num_bytes
        return True

    def put(self, digest: str, weights: AdapterWeights) -> None:
        """Fill the room that was reserved."""
        self._held[digest].weights = weights

    def drop(self, digest: str) -> None:
        """Forget an adapter and give its room back; does nothing if it is not here."""
        if held := self._held.pop(digest, None):
            self.num_bytes -= held.num_bytes
