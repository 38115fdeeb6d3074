"""How many requests are open, and whose: no tenant takes all places from the others."""

from __future__ import annotations

from atoll.errors import Overloaded

# Dynamic thresholds, as switches use them for the queues in a shared memory (Choudhury and Hahne, 1998): a tenant may
# hold this many times the places that stay free. So it gets 4/5 of what the others leave, and k greedy tenants get
# 4/(1 + 4k) of all places each: the more hold much, the less each may, and no place is set aside for anybody by name.
ALPHA = 4


class OpenRequests:
    """Requests that are accepted and not yet answered, counted by tenant. Belongs to the event loop.

    max_open: of all tenants together. The tenant "" is everybody on a server without keys, and may hold all of them.
    """

    def __init__(self, max_open: int) -> None:
        self.by_tenant: dict[str, int] = {}  # only those that have any
        self._max_open = max_open

    def admit(self, tenant: str, count: int) -> None:
        """Add requests, all or none. Raises Overloaded."""
        num_open = sum(self.by_tenant.values())
        if num_open + count > self._max_open:
            raise Overloaded(f"{num_open} requests are open already", mend="try again in a second")
        held = self.by_tenant.get(tenant, 0)
        share = self._share(tenant, self._max_open - num_open + held)
        if held + count > share:
            raise Overloaded(
                f"this tenant has {held} requests open and asks for {count} more, but its share is {share} now",
                mend="ask for less at once, or try again in a second",
            )
        self.add(tenant, count)

    def add(self, tenant: str, count: int) -> None:
        """Count requests that are there anyway, whatever the limits say."""
        held = self.by_tenant.pop(tenant, 0) + count
        if held:
            self.by_tenant[tenant] = held

    def remove(self, tenant: str, count: int) -> None:
        """Requests have ended."""
        self.add(tenant, -count)

    def _share(self, tenant: str, left_by_others: int) -> int:
        """How many requests the tenant may have open, as long as the others keep what they have."""
        if not tenant:
            return self._max_open
        # The most for which `held <= ALPHA * free` holds once they are open. The last place is for who has none.
        return max(1, left_by_others * ALPHA // (1 + ALPHA))
