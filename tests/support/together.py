"""The same thing on several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable


def run_together(run: Callable[[], None], count: int) -> None:
    """Call `run` on `count` threads, and wait for all."""
    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
