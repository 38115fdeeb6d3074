"""Which adapters are on the device: loads beside the running steps, evicts the least recently used idle one."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from atoll.adapters.bank import AdapterBank
from atoll.adapters.peft_io import AdapterWeights, read_adapter
from atoll.adapters.store import StoredAdapter
from atoll.errors import AdapterInvalid, AtollError

ABANDONED_AFTER_S = 10.0


@dataclass
class _Resident:
    adapter: StoredAdapter
    slot: int
    num_users: int = 0


@dataclass
class _Loading:
    future: Future[AdapterWeights]
    asked_at_s: float


class AdapterResidency:
    """Owns the bank's slots while serving. All methods belong to one thread, the one that runs the steps.

    Files are read and checked on a loader thread; only the copy into the slot happens between two steps. `on_loaded`
    is called from the loader thread whenever a read has ended, to wake a waiting engine. base_digest: refuse adapters
    whose contract names another base.
    """

    def __init__(self, bank: AdapterBank, *, base_digest: str, on_loaded: Callable[[], None] = lambda: None) -> None:
        self._bank = bank
        self._base_digest = base_digest
        self._on_loaded = on_loaded
        self._resident: OrderedDict[str, _Resident] = OrderedDict()  # least recently used first
        self._loading: OrderedDict[str, _Loading] = OrderedDict()
        self._free = list(range(bank.num_slots - 1, -1, -1))
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapter-loader")
        self.num_loads = 0
        self.num_evictions = 0

    @property
    def loaded(self) -> list[StoredAdapter]:
        """The adapters on the device, least recently used first."""
        return [entry.adapter for entry in self._resident.values()]

    def acquire(self, adapter: StoredAdapter) -> int | None:
        """The adapter's slot, held until `release`; None while it is loading or every slot is in use.

        Never blocks. Raises AdapterInvalid once if its files turn out to be unusable; the next call tries again.
        """
        entry = self._resident.get(adapter.digest)
        if entry is None:
            entry = self._admit(adapter)
        if entry is None:
            return None
        entry.num_users += 1
        self._resident.move_to_end(adapter.digest)
        return entry.slot

    def release(self, digest: str) -> None:
        """Give back one hold; the adapter stays on the device until its slot is needed."""
        self._resident[digest].num_users -= 1

    def close(self) -> None:
        """Stop the loader thread."""
        self._loader.shutdown(wait=True, cancel_futures=True)

    def _admit(self, adapter: StoredAdapter) -> _Resident | None:
        loading = self._loading.get(adapter.digest)
        if loading is None:
            if len(self._loading) < self._bank.num_slots or self._forget_abandoned():
                future = self._loader.submit(self._read, adapter)
                self._loading[adapter.digest] = _Loading(future, time.monotonic())
                future.add_done_callback(lambda _: self._on_loaded())
            return None
        loading.asked_at_s = time.monotonic()
        future = loading.future
        if not future.done():
            return None
        if future.exception() is None and not self._free and not self._evict_one():
            return None
        del self._loading[adapter.digest]
        slot: int | None = None
        try:
            weights = future.result()
            slot = self._free.pop()
            self._bank.load(slot, weights)
        except Exception as error:
            if slot is not None:
                self._bank.clear(slot)
                self._free.append(slot)
            if isinstance(error, AtollError):
                raise
            raise AdapterInvalid(f"the adapter could not be loaded: {error}", where=adapter.id) from error
        self.num_loads += 1
        self._resident[adapter.digest] = _Resident(adapter, slot)
        return self._resident[adapter.digest]

    def _read(self, adapter: StoredAdapter) -> AdapterWeights:
        contract = adapter.contract
        if contract is not None and contract.base.digest != self._base_digest:
            raise AdapterInvalid(
                f"the adapter belongs to the base model {contract.base.name!r}",
                where=adapter.id,
                why=f"its base has the digest {contract.base.digest[:19]}, the one in use {self._base_digest[:19]}",
                mend=f"start with --base-model {contract.base.name}",
            )
        weights = read_adapter(adapter.folder)
        self._bank.check(weights)
        return weights

    def _forget_abandoned(self) -> bool:
        """Drop a finished read whose requests are gone; what is read and waits for a slot stays bounded."""
        now_s = time.monotonic()
        for digest, loading in self._loading.items():
            if loading.future.done() and now_s - loading.asked_at_s > ABANDONED_AFTER_S:
                del self._loading[digest]
                return True
        return False

    def _evict_one(self) -> bool:
        for digest, entry in self._resident.items():
            if entry.num_users == 0:
                self._bank.clear(entry.slot)
                self._free.append(entry.slot)
                del self._resident[digest]
                self.num_evictions += 1
                return True
        return False
