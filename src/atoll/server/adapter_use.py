"""How often each adapter was asked, and when last: since the server's start, for whoever looks at the page."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_MAX_NAMES = 4096


@dataclass
class Use:
    """Requests of one adapter that have ended. last_at_s: unix seconds; None for never."""

    num_requests: int = 0
    last_at_s: float | None = None


class AdapterUse:
    """Counts by adapter id; of too many adapters those that were not asked for the longest time are forgotten."""

    def __init__(self, now_s: Callable[[], float] = time.time) -> None:
        self._now_s = now_s
        self._uses: OrderedDict[str, Use] = OrderedDict()

    def note(self, adapter_id: str) -> None:
        """A request of the adapter has ended."""
        use = self._uses.setdefault(adapter_id, Use())
        use.num_requests += 1
        use.last_at_s = self._now_s()
        self._uses.move_to_end(adapter_id)
        while len(self._uses) > _MAX_NAMES:
            self._uses.popitem(last=False)

    def of(self, adapter_id: str) -> Use:
        """What is known of an adapter."""
        return self._uses.get(adapter_id, Use())
