"""What each key may do in a minute and at once. Belongs to the event loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from atoll.errors import RateLimited
from atoll.server.keys.keys import Key

_MINUTE_S = 60.0
_MAX_IDLE_KEYS = 1024


@dataclass
class Bucket:
    """Fills by `per_minute` in a minute and holds no more than that. May be in debt: then nothing is had of it."""

    level: float
    filled_at_s: float

    def fill(self, per_minute: int, now_s: float) -> None:
        """Bring the level up to date."""
        passed_s = max(0.0, now_s - self.filled_at_s)
        self.level = min(float(per_minute), self.level + passed_s * per_minute / _MINUTE_S)
        self.filled_at_s = now_s


@dataclass
class _Account:
    buckets: dict[str, Bucket] = field(default_factory=dict)
    num_running: int = 0


class KeyLimiter:
    """Token buckets and a count of running requests for each key; each server has its own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    @contextmanager
    def request(self, key: Key) -> Iterator[None]:
        """One HTTP request, while it runs. Raises RateLimited."""
        account = self._account(key)
        limit = key.limits.concurrency
        if limit is not None and account.num_running >= limit:
            raise RateLimited(f"{limit} requests of this key run already", retry_after_s=1)
        self._take(account, "requests", key.limits.requests_per_minute, 1)
        account.num_running += 1
        try:
            yield
        finally:
            account.num_running -= 1

    def take_tokens(self, key: Key, num_tokens: int) -> None:
        """Before the engine gets a prompt. Raises RateLimited.

        A prompt longer than a minute's tokens waits for a full bucket, and leaves a debt.
        """
        self._take(self._account(key), "tokens", key.limits.tokens_per_minute, num_tokens)

    def charge_tokens(self, key: Key, num_tokens: int) -> None:
        """After an answer, whose length nobody knew before: it may leave a debt, which holds up the next request."""
        per_minute = key.limits.tokens_per_minute
        if per_minute is not None:
            self._bucket(self._account(key), "tokens", per_minute).level -= num_tokens

    def _take(self, account: _Account, what: str, per_minute: int | None, amount: int) -> None:
        if per_minute is None:
            return
        bucket = self._bucket(account, what, per_minute)
        missing = min(amount, per_minute) - bucket.level
        if missing > 0:
            wait_s = math.ceil(missing * _MINUTE_S / per_minute)
            raise RateLimited(f"this key has used up its {per_minute} {what} in a minute", retry_after_s=max(1, wait_s))
        bucket.level -= amount

    def _bucket(self, account: _Account, what: str, per_minute: int) -> Bucket:
        now_s = self._clock()
        bucket = account.buckets.setdefault(what, Bucket(float(per_minute), now_s))
        bucket.fill(per_minute, now_s)
        return bucket

    def _account(self, key: Key) -> _Account:
        account = self._accounts.get(key.key_id)
        if account is None:
            self._forget_idle()
            account = self._accounts[key.key_id] = _Account()
        return account

    def _forget_idle(self) -> None:
        """A key that has done nothing for a while is as good as new, unless it is in debt."""
        if len(self._accounts) < _MAX_IDLE_KEYS:
            return
        now_s = self._clock()
        for key_id, account in list(self._accounts.items()):
            is_idle = all(
                bucket.level >= 0 and now_s - bucket.filled_at_s > _MINUTE_S for bucket in account.buckets.values()
            )
            if is_idle and not account.num_running:
                del self._accounts[key_id]
