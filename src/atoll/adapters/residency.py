"""Where the adapters are while serving: disk -> host memory -> device slots, loaded beside the running steps."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from threading import Lock

import torch
from torch import Tensor

from atoll.adapters.bank import AdapterBank, StagedAdapter
from atoll.adapters.load_errors import LoadErrors
from atoll.adapters.loads import Load, Loads
from atoll.adapters.peft_io import AdapterWeights, read_adapter
from atoll.adapters.pins import Pins
from atoll.adapters.store import StoredAdapter
from atoll.adapters.tiers import HostTier, MayGo, TieredAdapter, TierStats, default_host_bytes
from atoll.errors import AdapterInvalid, AtollError, Overloaded
from atoll.kernels.openmp import use_one_thread

logger = logging.getLogger(__name__)

NUM_LOADERS = 2
MAX_PREFETCHES = 8
# How long an adapter that a request asked for is kept although the request does not run yet: from others whose turn it
# is, and from those that are loaded ahead of their turn.
KEEP_S = 1.0
KEEP_FROM_PREFETCH_S = 30.0


class _NoRoom(Exception):
    """Host memory is full of adapters that others wait for; the adapter's turn comes again."""


@dataclass
class _Resident:
    """An adapter in a slot. staged: what is not published to the bank yet."""

    adapter: StoredAdapter
    slot: int
    staged: StagedAdapter | None
    num_users: int = 0
    loaded_at_s: float = field(default_factory=time.monotonic)


class AdapterResidency:
    """Owns the bank's slots and the host memory for adapters.

    `acquire` and `release` are for the thread that runs the steps; they and `prefetch` never block. The rest may be
    called from any thread, and `prefetch` too. Loader threads read and check files and copy into slots that nobody
    uses, one copy at a time; the step thread only publishes what is there. `on_loaded` is called from a loader thread
    whenever a load has ended, to wake a waiting engine.

    base_digest: adapters whose contract names another base are refused. host_bytes: the limit of host memory for
    adapters; None for a share of what is free.
    """

    def __init__(
        self,
        bank: AdapterBank,
        *,
        base_digest: str,
        host_bytes: int | None = None,
        on_loaded: Callable[[], None] = lambda: None,
    ) -> None:
        self._bank = bank
        self._base_digest = base_digest
        self._on_loaded = on_loaded
        self._lock = Lock()  # guards everything down to `_counts`
        self._free = list(range(bank.num_slots - 1, -1, -1))
        self._residents: OrderedDict[str, _Resident] = OrderedDict()  # least recently used first
        self._host = HostTier(default_host_bytes() if host_bytes is None else host_bytes)
        self._loads = Loads()
        self._errors = LoadErrors()
        self._asked_at_s: OrderedDict[str, float] = OrderedDict()  # by requests that do not run yet; oldest first
        self._pins = Pins(bank.num_slots)
        self._counts = TierStats()
        self._copying = Lock()
        self._loaders = ThreadPoolExecutor(NUM_LOADERS, thread_name_prefix="adapter-loader", initializer=use_one_thread)
        device = next((layer.weight.device for layer in bank.layers.values()), torch.device("cpu"))
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @property
    def loaded(self) -> list[StoredAdapter]:
        """The adapters on the device, least recently used first."""
        with self._lock:
            return [resident.adapter for resident in self._residents.values() if resident.staged is None]

    def adapters(self) -> list[TieredAdapter]:
        """All adapters on the device, then those in host memory alone; each least recently used first."""
        with self._lock:
            places = {digest: (resident.adapter, resident.num_users) for digest, resident in self._residents.items()}
            hosted = {adapter.digest: (adapter, 0) for adapter in self._host if adapter.digest not in places}
            return [
                TieredAdapter(
                    adapter=adapter,
                    tier="device" if digest in places else "host",
                    num_users=num_users,
                    is_pinned=digest in self._pins.digests,
                )
                for digest, (adapter, num_users) in (places | hosted).items()
            ]

    def stats(self) -> TierStats:
        """Counts since the start, and what host memory holds."""
        with self._lock:
            return replace(
                self._counts,
                num_loading=len(self._loads),
                num_host_evictions=self._host.num_evictions,
                num_in_host=len(self._host),
                host_bytes=self._host.num_bytes,
                max_host_bytes=self._host.max_bytes,
            )

    @property
    def pinned(self) -> frozenset[str]:
        """The digests of adapters that keep their slots."""
        return self._pins.digests

    def pin(self, adapter: StoredAdapter) -> None:
        """Load an adapter into a slot, as soon as one is free, and keep it there and in host memory until `unpin`.

        Newer revisions take its place once they are asked for. Raises UsageError if no slot would be left for others.
        """
        with self._lock:
            self._pins.add(adapter)
            self._errors.forget_old(adapter.digest, KEEP_S)
            self._load_pinned()

    def unpin(self, name: str) -> None:
        """Let an adapter be evicted again; does nothing if it is not pinned."""
        with self._lock:
            self._pins.discard(name)

    def prefetch(self, adapter: StoredAdapter) -> None:
        """Begin to load the adapter of a request that was queued, as far as nobody who waits already loses by it."""
        digest = adapter.digest
        with self._lock:
            self._errors.forget_old(digest, KEEP_S)
            if self._pins.follow(adapter):
                self._load_pinned()
            is_on_its_way = digest in self._residents or digest in self._loads
            may_start = not is_on_its_way and len(self._loads) < MAX_PREFETCHES
            if may_start and (self._host.find(digest) is None or self._has_slot(is_urgent=False)):
                self._start(Load(adapter, is_urgent=False))
            self._note_asked(digest)

    def acquire(self, adapter: StoredAdapter) -> int | None:
        """The adapter's slot, held until `release`; None while it is loading or every slot is in use.

        Raises AdapterInvalid once if its files turn out to be unusable; the next call tries again.
        """
        digest = adapter.digest
        with self._lock:
            resident = self._residents.get(digest)
            if resident is None:
                self._ask(adapter)
                return None
            if resident.staged is None:
                self._counts.num_slot_hits += 1
            else:
                self._bank.commit(resident.slot, resident.staged)
                resident.staged = None
            resident.num_users += 1
            self._residents.move_to_end(digest)
            self._host.find(digest)
            self._asked_at_s.pop(digest, None)
            return resident.slot

    def release(self, digest: str) -> None:
        """Give back one hold; the adapter stays on the device until its slot is needed."""
        with self._lock:
            self._residents[digest].num_users -= 1
            self._load_pinned()

    def close(self) -> None:
        """Stop the loader threads."""
        self._loaders.shutdown(wait=True, cancel_futures=True)

    # Below, where nothing else is said, the caller holds the lock.

    def _ask(self, adapter: StoredAdapter) -> None:
        """Load an adapter whose turn it is, if a slot can be had. Raises the error of its last load."""
        digest = adapter.digest
        if error := self._errors.take(digest):
            raise error
        self._note_asked(digest)
        if load := self._loads.get(digest):
            load.is_urgent = load.is_urgent or self._has_slot(is_urgent=True)
        elif len(self._loads) < MAX_PREFETCHES + self._bank.num_slots and self._has_slot(is_urgent=True):
            self._start(Load(adapter, is_urgent=True))

    def _load_pinned(self) -> None:
        """Let pinned adapters that have no slot yet take those that nobody uses."""
        for adapter in self._pins:
            if any(adapter.digest in taken for taken in (self._residents, self._loads, self._errors)):
                continue
            if self._has_slot(is_urgent=True):
                self._start(Load(adapter, is_urgent=True))

    def _note_asked(self, digest: str) -> None:
        now_s = time.monotonic()
        self._asked_at_s[digest] = now_s
        self._asked_at_s.move_to_end(digest)
        while now_s - next(iter(self._asked_at_s.values())) > KEEP_FROM_PREFETCH_S:
            self._asked_at_s.popitem(last=False)

    def _start(self, load: Load) -> None:
        self._loaders.submit(self._load_next)
        self._loads[load.adapter.digest] = load

    def _is_awaited(self, digest: str, within_s: float) -> bool:
        return time.monotonic() - self._asked_at_s.get(digest, float("-inf")) < within_s

    def _idle(self, *, is_urgent: bool) -> Iterator[_Resident]:
        """The adapters whose slots may be taken, least recently used first."""
        now_s = time.monotonic()
        for digest, resident in self._residents.items():
            if resident.num_users or digest in self._pins.digests:
                continue
            if is_urgent:
                # Once it was used its turn is over, however many wait for it.
                is_kept = resident.staged is not None and now_s - resident.loaded_at_s < KEEP_S
            else:
                is_kept = self._is_awaited(digest, KEEP_FROM_PREFETCH_S)
            if not is_kept:
                yield resident

    def _has_slot(self, *, is_urgent: bool) -> bool:
        """Whether one more load finds a slot beside the urgent ones on their way; ahead of time only if nobody waits.

        So a slot goes to whoever's turn came first, not to whoever is read fastest.
        """
        if not is_urgent and self._is_somebody_waiting():
            return False
        num_missing = 1 + self._loads.num_promised_slots(KEEP_S) - len(self._free)
        return sum(1 for _ in islice(self._idle(is_urgent=is_urgent), max(0, num_missing))) >= num_missing

    def _is_somebody_waiting(self) -> bool:
        """Whether an adapter that was asked for has no slot and is not on its way into one."""
        places = self._residents.keys() | self._loads.keys()
        return any(
            digest not in places and self._is_awaited(digest, KEEP_FROM_PREFETCH_S) for digest in self._asked_at_s
        )

    def _take_slot(self, load: Load) -> int | None:
        if not load.is_urgent and not self._has_slot(is_urgent=False):
            return None
        if not self._free:
            idle = next(self._idle(is_urgent=load.is_urgent), None)
            if idle is None:
                return None
            del self._residents[idle.adapter.digest]
            self._counts.num_slot_evictions += 1
            self._free.append(idle.slot)
        load.has_slot = True
        return self._free.pop()

    def _may_leave_host(self, is_urgent: bool) -> list[MayGo]:
        """Who goes first: the idle, then those that their slots hold anyway, then those that others wait for."""

        def is_movable(digest: str) -> bool:
            return digest not in self._pins.digests and digest not in self._loads

        def is_used(digest: str) -> bool:
            return (resident := self._residents.get(digest)) is not None and resident.num_users > 0

        def is_idle(digest: str) -> bool:
            is_awaited = self._is_awaited(digest, KEEP_FROM_PREFETCH_S)
            return is_movable(digest) and not is_used(digest) and not is_awaited

        classes: list[MayGo] = [is_idle, lambda digest: is_movable(digest) and is_used(digest)]
        return [*classes, is_movable] if is_urgent else classes

    # On a loader thread, which does not hold the lock.

    def _load_next(self) -> None:
        with self._lock:
            load = self._loads.begin_next()
        self._load(load)

    def _load(self, load: Load) -> None:
        error: AtollError | None = None
        had_room = True
        try:
            self._copy(load, self._find_or_read(load))
        except _NoRoom:
            had_room = False
        except AtollError as caught:
            error = caught
        except Exception as caught:
            logger.exception("the adapter %s could not be loaded", load.adapter.id)
            error = AdapterInvalid(f"the adapter could not be loaded: {caught!r}", where=load.adapter.id)
        with self._lock:
            del self._loads[load.adapter.digest]
            if error is not None:
                self._note_error(load.adapter, error)
            elif had_room:
                self._load_pinned()  # a slot may have come free while this one was on its way
            # Who found no room would ask in circles until one of the others has ended.
            is_news = had_room or not self._loads
        if is_news:
            self._on_loaded()

    def _note_error(self, adapter: StoredAdapter, error: AtollError) -> None:
        digest = adapter.digest
        if digest in self._pins.digests:  # perhaps nobody else ever asks for it, and hears of the error
            logger.warning("the pinned adapter %s could not be loaded: %s", adapter.id, error)
        self._host.drop(digest)
        self._asked_at_s.pop(digest, None)
        self._counts.num_failures += 1
        self._errors.put(digest, error)

    def _find_or_read(self, load: Load) -> AdapterWeights:
        adapter = load.adapter
        with self._lock:
            if (weights := self._host.find(adapter.digest)) is not None:
                self._counts.num_host_hits += 1
                return weights
        started_at_s = time.monotonic()
        adapter.check_base(self._base_digest)
        weights = read_adapter(
            adapter.folder, verify=adapter.verify, check=self._bank.check, allocate=partial(self._allocate, load)
        )
        with self._lock:
            self._host.put(adapter.digest, weights)
            self._counts.num_reads += 1
            self._counts.read_s += time.monotonic() - started_at_s
        return weights

    def _allocate(self, load: Load, num_bytes: int) -> Tensor:
        """Memory for an adapter's weights within the limit. Raises AdapterInvalid or Overloaded if it can never fit."""
        with self._lock:
            has_room = self._host.reserve(load.adapter, num_bytes, self._may_leave_host(load.is_urgent))
            num_pinned_bytes = sum(map(self._host.size_of, self._pins.digests))
            max_bytes = self._host.max_bytes
        if has_room:
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._stream is not None)
        if num_bytes > max_bytes:
            raise AdapterInvalid(
                f"the adapter has {num_bytes} bytes, host memory for adapters {max_bytes}",
                where=load.adapter.id,
                mend=f"start with host_adapter_bytes of {num_bytes} or more",
            )
        if num_bytes + num_pinned_bytes > max_bytes:
            raise Overloaded(
                "pinned adapters fill the host memory for adapters",
                where=load.adapter.id,
                why=f"they take {num_pinned_bytes} of {max_bytes} bytes, this one needs {num_bytes}",
                mend="unpin one, or start with more host_adapter_bytes",
            )
        raise _NoRoom

    def _copy(self, load: Load, weights: AdapterWeights) -> None:
        with self._lock:
            slot = self._take_slot(load)
        if slot is None:
            return
        try:
            with self._copying:
                started_at_s = time.monotonic()
                staged = self._stage(slot, weights)
                copy_s = time.monotonic() - started_at_s
        except BaseException:
            with self._lock:
                self._free.append(slot)
            raise
        with self._lock:
            self._residents[load.adapter.digest] = _Resident(load.adapter, slot, staged)
            self._counts.num_loads += 1
            self._counts.copy_s += copy_s

    def _stage(self, slot: int, weights: AdapterWeights) -> StagedAdapter:
        if self._stream is None:
            return self._bank.stage(slot, weights)
        # The slot's last reader may still be queued on the step thread's stream.
        self._stream.wait_stream(torch.cuda.default_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            staged = self._bank.stage(slot, weights)
        self._stream.synchronize()
        return staged
