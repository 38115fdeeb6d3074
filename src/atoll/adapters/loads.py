"""Loads of adapters that wait for a loader thread or are under way."""

from __future__ import annotations

import time
from dataclasses import dataclass

from atoll.adapters.store import StoredAdapter


@dataclass
class Load:
    """What a loader thread does or will do. is_urgent: for a request that could run, and a slot can be had."""

    adapter: StoredAdapter
    is_urgent: bool
    begun_at_s: float | None = None
    has_slot: bool = False

    def is_promised_slot(self, within_s: float) -> bool:
        """Whether a slot is kept for it: no longer than reading should take, for a disk may hang."""
        is_overdue = self.begun_at_s is not None and time.monotonic() - self.begun_at_s >= within_s
        return self.is_urgent and not self.has_slot and not is_overdue


class Loads(dict[str, Load]):
    """Loads by digest, in the order in which they were asked for. The caller locks."""

    def begin_next(self) -> Load:
        """The load that a free thread does now: of the urgent ones the first, else the first. One must not have begun.

        What is loaded ahead of its turn can wait; what is urgent keeps a slot empty until it is there.
        """
        waiting = [load for load in self.values() if load.begun_at_s is None]
        load = next((load for load in waiting if load.is_urgent), waiting[0])
        load.begun_at_s = time.monotonic()
        return load

    def num_promised_slots(self, within_s: float) -> int:
        """How many slots are kept for loads that have none yet."""
        return sum(load.is_promised_slot(within_s) for load in self.values())
