"""The last ten minutes of a server: one look a second at figures that the engine keeps anyway."""

from __future__ import annotations

import asyncio
import bisect
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atoll.server.engine_metrics import kv_use
from atoll.server.metrics import Buckets, ServerMetrics

if TYPE_CHECKING:
    from atoll.engine import EngineStats

INTERVAL_S = 1.0
NUM_KEPT = 600
QUANTILES = (0.5, 0.95, 0.99)
_WINDOW = 60
_MAX_NAMES = 32


@dataclass(frozen=True)
class Look:
    """How a server stood at one moment. at: unix seconds. running: requests by adapter, "" for the bare base."""

    number: int
    at: float
    stats: EngineStats
    latencies: dict[str, Buckets]


class History:
    """Looks at a server while anybody is interested. Belongs to the event loop; nothing here waits for a step."""

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        metrics: ServerMetrics,
        *,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._stats = stats
        self._metrics = metrics
        self._interval_s = interval_s
        self._clock = clock
        self._looks: deque[Look] = deque(maxlen=NUM_KEPT + _WINDOW)
        self._num_taken = 0
        self._task: asyncio.Task[None] | None = None

    def ensure_started(self) -> None:
        """Begin to look, unless it has begun; from then on for as long as the event loop runs."""
        if self._task is None or self._task.done():
            self.look()
            self._task = asyncio.get_running_loop().create_task(self._run())

    def look(self) -> None:
        """Take one look."""
        self._num_taken += 1
        self._looks.append(Look(self._num_taken, self._clock(), self._stats(), self._metrics.latencies()))

    def after(self, number: int) -> list[dict[str, Any]]:
        """What was seen since the look of that number, oldest first, as JSON values; rates are per second."""
        looks = list(self._looks)
        if looks and number > looks[-1].number:
            number = 0  # of an earlier life of this server
        first = max(1, bisect.bisect_right([look.number for look in looks], number), len(looks) - NUM_KEPT)
        return [
            _row(looks[max(0, index - _WINDOW)], looks[index - 1], looks[index]) for index in range(first, len(looks))
        ]

    @property
    def latest(self) -> Look | None:
        """The latest look."""
        return self._looks[-1] if self._looks else None

    def quantiles(self) -> dict[str, dict[str, float | None]]:
        """Each latency's quantiles over the last minute, in seconds; None where nothing was measured."""
        if not self._looks:
            return {}
        looks = list(self._looks)
        return _quantiles(looks[max(0, len(looks) - 1 - _WINDOW)].latencies, looks[-1].latencies)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            self.look()


def _row(minute_ago: Look, before: Look, now: Look) -> dict[str, Any]:
    old, new = before.stats, now.stats
    seconds = max(now.at - before.at, 1e-3)
    num_steps = new.num_steps - old.num_steps
    num_computed = new.num_computed_tokens - old.num_computed_tokens
    return {
        "number": now.number,
        "at": round(now.at, 3),
        "waiting": new.num_waiting,
        "running": new.num_running,
        "steps": round(num_steps / seconds, 2),
        "tokens_per_step": round(num_computed / num_steps, 1) if num_steps else 0.0,
        "generated": round((new.num_generated_tokens - old.num_generated_tokens) / seconds, 1),
        "computed": round(num_computed / seconds, 1),
        "kv_use": round(kv_use(new), 4),
        "kv_cached": round(new.num_cached_blocks / new.num_blocks, 4) if new.num_blocks else 0.0,
        "device_hits": new.tiers.num_slot_hits - old.tiers.num_slot_hits,
        "host_hits": new.tiers.num_host_hits - old.tiers.num_host_hits,
        "disk_reads": new.tiers.num_reads - old.tiers.num_reads,
        "failed": new.num_failed - old.num_failed,
        "preempted": new.num_preemptions - old.num_preemptions,
        "batch": _largest(dict(new.running_by_adapter)),
        "latency": _quantiles(minute_ago.latencies, now.latencies),
    }


def _largest(counts: dict[str, int]) -> dict[str, int]:
    """The adapters with the most requests, by name, so that equal batches look alike."""
    kept = sorted(counts, key=lambda name: (-counts[name], name))[:_MAX_NAMES]
    return {name: counts[name] for name in sorted(kept)}


def _quantiles(before: dict[str, Buckets], now: dict[str, Buckets]) -> dict[str, dict[str, float | None]]:
    return {
        name: {f"p{q * 100:.0f}": quantile(q, before.get(name, ()), buckets) for q in QUANTILES}
        for name, buckets in now.items()
    }


def quantile(share: float, before: Buckets, now: Buckets) -> float | None:
    """A quantile of what was counted between two looks, in seconds: on a line within its bucket, as Prometheus does.

    In the last bucket, which has no end, its beginning. None where nothing was counted.
    """
    earlier = dict(before)
    counts = [(bound, number - earlier.get(bound, 0.0)) for bound, number in now]
    if not counts or counts[-1][1] <= 0:
        return None
    wanted = share * counts[-1][1]
    low, below = 0.0, 0.0
    for bound, number in counts:
        if number >= wanted:
            if bound == float("inf"):
                return low
            width = number - below
            return round(low + (bound - low) * (wanted - below) / width if width else bound, 6)
        low, below = bound, number
    return low
