"""Which hosts may be asked for an adapter: allow-listed names, at addresses that are not this machine's neighbours.

A name is resolved once, the address is held against the rules, and the connection goes to that very address: a name
that resolves to another one a moment later gains nothing. Redirects come here too, as every connection does.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from atoll.errors import RequestInvalid, Unavailable

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class SourceUnavailable(Unavailable):
    """The place that an adapter comes from does not answer, or not as it should."""

    code = "adapter_source_unavailable"


@dataclass(frozen=True, kw_only=True)
class HostRules:
    """hosts: names or patterns (`*.hf.co`) that may be asked. private_hosts: those of them, by exact name, that may
    have private addresses and speak plain HTTP. timeout_s: for each wait for the network."""

    hosts: tuple[str, ...]
    private_hosts: tuple[str, ...] = ()
    timeout_s: float = 10.0

    def connection(self, url: str) -> http.client.HTTPConnection:
        """A connection for a URL, not open yet. Raises RequestInvalid where the rules forbid it."""
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise RequestInvalid("the address of an adapter's file is not valid") from None
        is_private = host in self.private_hosts
        if not is_private and not any(fnmatchcase(host, pattern) for pattern in self.hosts):
            raise RequestInvalid(f"the host {host[:100]!r} is not one that adapters may come from")
        if parts.scheme == "https":
            return _PinnedTLS(host, port, self)
        if parts.scheme == "http" and is_private:
            return _Pinned(host, port, self)
        raise RequestInvalid(f"adapters come by https, not by {parts.scheme[:20]!r}")

    def addresses(self, host: str, port: int) -> list[str]:
        """Where a host is, without the addresses that it may not have. Raises RequestInvalid if none is left."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise SourceUnavailable(f"the host {host[:100]!r} has no address", why=str(error)) from None
        allowed = [str(entry[4][0]) for entry in found if host in self.private_hosts or is_public(str(entry[4][0]))]
        if not allowed:
            raise RequestInvalid(f"the host {host[:100]!r} has a private address, where no adapter may come from")
        return allowed


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet, also behind the ways to write IPv4 in IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


class _Pinned(http.client.HTTPConnection):
    """Connects to an address that the rules allow, and to no other."""

    def __init__(self, host: str, port: int, rules: HostRules) -> None:
        super().__init__(host, port, timeout=rules.timeout_s)
        self._rules = rules

    def connect(self) -> None:
        self.sock = _connected(self._rules.addresses(self.host, self.port), self.port, self._rules.timeout_s)


class _PinnedTLS(_Pinned):
    """The same with TLS; the certificate is held against the name, not the address."""

    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def _connected(addresses: Sequence[str], port: int, timeout_s: float) -> socket.socket:
    error: OSError = OSError("no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout_s)
        except OSError as caught:
            error = caught
    raise error
