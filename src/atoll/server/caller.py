"""Who sends a request, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from starlette.requests import HTTPConnection

Scope = Literal["use", "admin"]
SCOPE_KEY = "atoll.caller"
"""Where the ASGI scope has the caller, once somebody has found out who it is."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The holder of a key; without keys, whoever reaches the server.

    tenant: callers of one tenant share adapters and the prefix cache, and their requests are one party among the
    tenants. adapters: patterns of adapter names that they may use (`*`, `support-*`). priority: smaller goes first
    within the tenant.
    """

    key_id: str = ""
    tenant: str = ""
    scopes: frozenset[Scope] = frozenset({"use", "admin"})
    adapters: tuple[str, ...] = ("*",)
    priority: int = 0

    def may_use(self, adapter_name: str) -> bool:
        """Whether an adapter is there for this caller; the others do not exist."""
        return any(fnmatchcase(adapter_name, pattern) for pattern in self.adapters)


ANYBODY = Caller()


def caller_of(connection: HTTPConnection) -> Caller:
    """The caller of a request."""
    caller: Caller = connection.scope.get(SCOPE_KEY, ANYBODY)
    return caller
