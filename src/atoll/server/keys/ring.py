"""The keys in memory: no request waits for the database, and known keys outlive its absence."""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Callable

from atoll.errors import Unauthorized, Unavailable
from atoll.log import get_logger
from atoll.server.keys.database import DatabaseUnavailable
from atoll.server.keys.keys import Key, KeyStore, digest_of, key_id_of

logger = get_logger(__name__)

REFRESH_S = 1.0
MAX_AGE_S = 900.0
_NO_DIGEST = "0" * 64


class KeyRing:
    """The keys as the database had them a second ago; a thread of its own looks for changes.

    Without the database they stay as they are for `max_age_s`; then nobody is let in: a key may have been revoked.
    """

    def __init__(
        self,
        store: KeyStore,
        *,
        refresh_s: float = REFRESH_S,
        max_age_s: float = MAX_AGE_S,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """Reads all keys. Raises DatabaseUnavailable."""
        self._store = store
        self._refresh_s = refresh_s
        self._max_age_s = max_age_s
        self._now_s = now_s
        self._keys: dict[str, Key] = {}
        self._version = -1
        self._seen_at_s = 0.0
        self._is_behind = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="atoll-keys", daemon=True)
        self.refresh()

    def __len__(self) -> int:
        return len(self._keys)

    def start(self) -> None:
        """Look for changes from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking. A database that hangs may hold the thread a little longer; it is nobody's any more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * self._refresh_s)

    def get(self, key_id: str) -> Key | None:
        """A key by its id, whatever has become of it."""
        return self._keys.get(key_id)

    def find(self, text: str) -> Key:
        """The key that somebody shows. Raises Unauthorized, and Unavailable when the database is away for too long."""
        self._check_age()
        key = self._keys.get(key_id_of(text) or "")
        is_right = hmac.compare_digest(key.digest if key else _NO_DIGEST, digest_of(text))
        return self._checked(key if is_right else None)

    def find_by_id(self, key_id: str) -> Key:
        """The key of somebody who has shown it before. Raises as `find` does."""
        self._check_age()
        return self._checked(self._keys.get(key_id))

    def _check_age(self) -> None:
        if time.monotonic() - self._seen_at_s > self._max_age_s:
            raise Unavailable("the keys cannot be checked", why="their database does not answer")

    def _checked(self, key: Key | None) -> Key:
        if key is None:
            raise Unauthorized("this key is not valid", mend="see that it is whole, and meant for this server")
        if key.revoked_at_s is not None:
            raise Unauthorized("this key has been revoked", mend="ask for a new one")
        if key.expires_at_s is not None and self._now_s() >= key.expires_at_s:
            raise Unauthorized("this key has expired", mend="ask for a new one")
        return key

    def refresh(self) -> None:
        """Read the keys if one has changed. Raises DatabaseUnavailable."""
        version = self._store.version()
        if version != self._version:
            # Read after the version: what is changed in between is read again next time.
            self._keys = {key.key_id: key for key in self._store.list()}
            self._version = version
        self._seen_at_s = time.monotonic()

    def _run(self) -> None:
        while not self._stopped.wait(self._refresh_s):
            try:
                self.refresh()
            except DatabaseUnavailable as error:
                if not self._is_behind:
                    logger.warning("keys are served from memory: %s", error)
                self._is_behind = True
            else:
                if self._is_behind:
                    logger.info("the database of the keys is back")
                self._is_behind = False
