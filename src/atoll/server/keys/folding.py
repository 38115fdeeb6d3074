"""From the journals into the database, by a thread of its own: every line exactly once, whatever dies in between."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from atoll.errors import AtollError
from atoll.log import get_logger
from atoll.server.keys.journal import SUFFIX, Journal, taken_over
from atoll.server.keys.usage import UsageStore

logger = get_logger(__name__)

INTERVAL_S = 1.0
MAX_WAIT_S = 10.0
MAX_BYTES_AT_ONCE = 1 << 20


class Folding:
    """Adds what its own server writes, and what servers that have ended left in the same folder."""

    def __init__(self, store: UsageStore, folder: Path, journal: Journal, interval_s: float = INTERVAL_S) -> None:
        self._store = store
        self._folder = folder
        self._journal = journal
        self._interval_s = interval_s
        self._done: dict[Path, int] = {}
        self._stopped = threading.Event()
        self._is_behind = False
        self._thread = threading.Thread(target=self._run, name="atoll-usage", daemon=True)

    def start(self) -> None:
        """Fold from now on."""
        self._thread.start()

    def close(self) -> None:
        """Fold the rest, if the database answers: else the next server that uses it will. The journal is closed."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=MAX_WAIT_S)
        if not self._thread.is_alive():
            self._try_fold()

    def fold(self) -> None:
        """Everything that there is. Raises DatabaseUnavailable, and OSError where a file cannot be read."""
        for path in self._journal.full:
            self._finish(path)
            self._journal.let_go(path)
        own = self._journal.path
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            if path == own:
                self._fold_file(path)
                continue
            with taken_over(path) as is_ours:
                if is_ours:
                    self._finish(path)

    def _finish(self, path: Path) -> None:
        """A file that grows no more, and that is locked: nobody else has it in hand."""
        if path.exists():  # else the database went away before its row had gone
            self._fold_file(path)
            # In this order: a file that is still there when its row has gone would count twice.
            path.unlink()
        self._store.forget(path.stem)
        self._done.pop(path, None)

    def _fold_file(self, path: Path) -> None:
        """Every whole line; a last one without its end was never finished, or will be."""
        with path.open("rb") as file:
            done = self._done.get(path, 0)
            if os.fstat(file.fileno()).st_size <= done:
                return
            # The database must not know more of a file than what is left of it after a power cut.
            os.fsync(file.fileno())
            while True:
                file.seek(done)
                content = file.read(MAX_BYTES_AT_ONCE)
                whole = content[: content.rfind(b"\n") + 1]
                if not whole:
                    return
                done = self._done[path] = self._store.add(path.stem, done, whole)

    def _run(self) -> None:
        wait_s = self._interval_s
        while not self._stopped.wait(wait_s):
            wait_s = self._interval_s if self._try_fold() else min(2 * wait_s, MAX_WAIT_S)

    def _try_fold(self) -> bool:
        try:
            self.fold()
        except (AtollError, OSError) as error:
            if not self._is_behind:
                logger.warning("usage waits in %s: %s", self._folder, error)
            self._is_behind = True
            return False
        if self._is_behind:
            logger.info("usage is in the database again")
        self._is_behind = False
        return True
