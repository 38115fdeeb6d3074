"""Why adapters could not be loaded, kept until a request that waits for one of them is told."""

from __future__ import annotations

import time
from collections import OrderedDict

from atoll.errors import AtollError

MAX_ERRORS = 256


class LoadErrors:
    """The last error of each adapter's load, by digest; the newest MAX_ERRORS of them. The caller locks."""

    def __init__(self) -> None:
        self._errors: OrderedDict[str, tuple[AtollError, float]] = OrderedDict()  # with the time of each

    def __contains__(self, digest: str) -> bool:
        return digest in self._errors

    def put(self, digest: str, error: AtollError) -> None:
        """Keep an error, without what it was raised in: its frames hold the memory that the adapter was read into."""
        error.__traceback__ = error.__context__ = error.__cause__ = None
        self._errors[digest] = error, time.monotonic()
        if len(self._errors) > MAX_ERRORS:
            self._errors.popitem(last=False)

    def take(self, digest: str) -> AtollError | None:
        """The error, once; None if the last load went well or its error has been told."""
        found = self._errors.pop(digest, None)
        return found[0] if found else None

    def forget_old(self, digest: str, age_s: float) -> None:
        """Drop the error of an earlier request that is gone; a fresh one is still to be told to those who wait."""
        if digest in self._errors and time.monotonic() - self._errors[digest][1] > age_s:
            del self._errors[digest]
