"""Who has logged in to the page: a cookie that is no key, and ends with its key. Belongs to the event loop."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from atoll.errors import RateLimited

COOKIE = "atoll_session"
LIFETIME_S = 12 * 3600
MAX_SESSIONS = 20
"""Of one key, at the same time."""
_MAX_FAILURES = 10
_WINDOW_S = 60.0
_MAX_ADDRESSES = 10_000


@dataclass(frozen=True)
class Session:
    """One login. It knows the key by its id alone."""

    key_id: str
    ends_at_s: float


class Sessions:
    """Sessions by a digest of their random id: what is in memory opens nothing."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()

    def start(self, key_id: str) -> str:
        """The id of a new session, 256 random bits. When a key has too many, its oldest one ends."""
        now_s = self._now_s()
        while self._sessions and now_s >= next(iter(self._sessions.values())).ends_at_s:
            self._sessions.popitem(last=False)
        own = [digest for digest, session in self._sessions.items() if session.key_id == key_id]
        if len(own) >= MAX_SESSIONS:
            del self._sessions[own[0]]
        session_id = secrets.token_urlsafe(32)
        self._sessions[_digest(session_id)] = Session(key_id, now_s + LIFETIME_S)
        return session_id

    def key_id(self, session_id: str) -> str | None:
        """Whose session it is; None where there is none, or where it is over."""
        digest = _digest(session_id)
        session = self._sessions.get(digest)
        if session is not None and self._now_s() >= session.ends_at_s:
            del self._sessions[digest]
            return None
        return session.key_id if session else None

    def end(self, session_id: str) -> None:
        """Forget a session, if there is one."""
        self._sessions.pop(_digest(session_id), None)


class LoginLimiter:
    """Wrong keys that one address may try in a minute. Right ones are not its business: behind a proxy that ends TLS,
    everybody has one address.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def check(self, address: str) -> None:
        """Raise RateLimited where an address has failed too often."""
        recent = self._recent(address)
        if len(recent) >= _MAX_FAILURES:
            wait_s = max(1, round(recent[0] + _WINDOW_S - self._now_s()))
            raise RateLimited("there were too many wrong keys", retry_after_s=wait_s)

    def failed(self, address: str) -> None:
        """Count a wrong key."""
        self._failures[address] = [*self._recent(address), self._now_s()][-_MAX_FAILURES:]
        self._failures.move_to_end(address)
        while len(self._failures) > _MAX_ADDRESSES:
            self._failures.popitem(last=False)

    def _recent(self, address: str) -> list[float]:
        since_s = self._now_s() - _WINDOW_S
        return [at_s for at_s in self._failures.get(address, ()) if at_s > since_s]


def _digest(session_id: str) -> bytes:
    return hashlib.sha256(session_id.encode("utf-8", "surrogateescape")).digest()
