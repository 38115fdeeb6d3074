"""A server whose threads do not get on with preparing requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from atoll.errors import RequestInvalid


@contextmanager
def stuck_preparing() -> Iterator[tuple[threading.Semaphore, threading.Event]]:
    """Requests are prepared by threads, which the semaphore counts, and are refused once the event is set."""
    has_begun, release = threading.Semaphore(0), threading.Event()

    def prepare(*_: object) -> None:
        has_begun.release()
        release.wait(30)
        raise RequestInvalid("too late")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atoll.server.prepare.Preparer.is_quick", lambda *_: False)
        patch.setattr("atoll.server.prepare.Preparer.prepare", prepare)
        yield has_begun, release
