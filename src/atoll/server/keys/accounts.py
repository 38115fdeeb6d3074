"""Keys, limits and usage of one server."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from atoll.errors import Unavailable
from atoll.server.caller import Caller
from atoll.server.keys.database import Database
from atoll.server.keys.folding import INTERVAL_S, Folding
from atoll.server.keys.journal import Journal
from atoll.server.keys.keys import KeyStore
from atoll.server.keys.limits import KeyLimiter
from atoll.server.keys.ring import REFRESH_S, KeyRing
from atoll.server.keys.usage import UsageStore, line_of
from atoll.server.meter import Spent


class Accounts:
    """Who may come in, what they may use, and what they have used: the Meter of a server with keys.

    journals: the folder of all journals; each database has one of its own below it. price_per_million_tokens_usd: of
    prompts and answers alike. Use it as a context manager.
    """

    def __init__(
        self,
        database: Database,
        journals: Path,
        *,
        price_per_million_tokens_usd: float = 0.0,
        refresh_s: float = REFRESH_S,
        fold_s: float = INTERVAL_S,
    ) -> None:
        """Raises DatabaseUnavailable, and UsageError if the journal cannot be written."""
        folder = journals / database.id
        self.ring = KeyRing(KeyStore(database), refresh_s=refresh_s)
        self.limiter = KeyLimiter()
        self._price_per_token_usd = price_per_million_tokens_usd / 1e6
        self._journal = Journal(folder)
        self.usage = UsageStore(database)
        self._folding = Folding(self.usage, folder, self._journal, fold_s)

    def __enter__(self) -> Accounts:
        self.ring.start()
        self._folding.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.ring.close()
        self._journal.close()
        self._folding.close()

    def admit(self, caller: Caller, num_prompt_tokens: int) -> None:
        """Raises RateLimited, and Unavailable while usage cannot be written: nothing is given away unseen."""
        if self._journal.is_stuck:
            raise Unavailable("usage cannot be recorded", why="the disk does not take the journal")
        key = self.ring.get(caller.key_id)
        if key is not None:
            self.limiter.take_tokens(key, num_prompt_tokens)

    def ended(self, spent: Spent) -> None:
        """Write it down; the next request may have to wait for it."""
        self._journal.append(line_of(spent, at_s=time.time(), price_per_token_usd=self._price_per_token_usd))
        key = self.ring.get(spent.caller.key_id)
        if key is not None:
            self.limiter.charge_tokens(key, spent.num_new_tokens)
