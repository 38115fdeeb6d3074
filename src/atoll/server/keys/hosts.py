"""Names that a server without keys answers to: a web page must not reach it through a name of its own.

A page of some site may let its name point to 127.0.0.1 (DNS rebinding), or simply send requests there. The first shows
in the header Host, the second in the header Origin.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from starlette.types import Scope

from atoll.errors import Forbidden

_MAX_KEPT = 64


class HostRule:
    """The hosts in `allowed`, this machine's loopback names and addresses, and with `any_address` every IP address."""

    def __init__(self, allowed: Iterable[str] = (), *, any_address: bool = False) -> None:
        self._allowed = frozenset(name.lower().rstrip(".") for name in allowed)
        self._any_address = any_address
        self._allows = lru_cache(_MAX_KEPT)(self._allows_name)  # clients say the same name with every request

    def check(self, scope: Scope) -> None:
        """Raise Forbidden unless Host, and Origin where there is one, name this server."""
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not self._allows(hosts[0]):
            raise Forbidden(
                f"the header Host says {', '.join(hosts)[:80] or 'nothing'!r}, which is not a name of this server",
                mend="use its address, or start it with --allowed-host NAME",
            )
        for origin in _values(scope, b"origin"):
            if not self._allows(origin.partition("://")[2]):
                raise Forbidden("pages of other sites may not use this server", mend="start it with keys")

    def _allows_name(self, host: str) -> bool:
        name = _without_port(host.lower()).rstrip(".")
        if name == "localhost" or name.endswith(".localhost") or name in self._allowed:
            return True
        try:
            address = ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return self._any_address or address.is_loopback


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _without_port(host: str) -> str:
    if host.startswith("["):
        inside, bracket, port = host.partition("]")
        return inside + bracket if not port or port[1:].isdigit() else ""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
