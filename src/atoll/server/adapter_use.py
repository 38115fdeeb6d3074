"""How often each adapter was asked, and when last: since the server's start, for the page."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from atoll.server.caller import Caller

_MAX_NAMES = 4096


@dataclass
class Use:
    """Requests of one adapter that have ended. last_at_s: unix seconds; None for never."""

    num_requests: int = 0
    last_at_s: float | None = None


class AdapterUse:
    """Counts by adapter id and tenant, and in all; of too many those are forgotten that were not asked for longest."""

    def __init__(self, now_s: Callable[[], float] = time.time) -> None:
        self._now_s = now_s
        self._uses: OrderedDict[tuple[str, str | None], Use] = OrderedDict()

    def note(self, adapter_id: str, tenant: str) -> None:
        """A request of the adapter has ended."""
        for key in ((adapter_id, tenant), (adapter_id, None)):
            use = self._uses.setdefault(key, Use())
            use.num_requests += 1
            use.last_at_s = self._now_s()
            self._uses.move_to_end(key)
        while len(self._uses) > _MAX_NAMES:
            self._uses.popitem(last=False)

    def of(self, adapter_id: str, caller: Caller) -> Use:
        """What the caller may know: admins of everybody's requests, others of their tenant's."""
        return self._uses.get((adapter_id, None if "admin" in caller.scopes else caller.tenant), Use())
