"""Python's search for garbage, which a command's start need not wait for."""

from __future__ import annotations

import gc

_THRESHOLDS = gc.get_threshold()


def collect_seldom() -> None:
    """Look through the youngest objects alone, until `collect_as_usual`: imports make objects that stay.

    torch and transformers make 420,000 of them, and every quarter more Python looks through all that there are, which
    takes a fifth of the seconds that a command needs to start.
    """
    gc.set_threshold(*_THRESHOLDS[:2], 1000)


def collect_as_usual() -> None:
    """What runs long has had its imports."""
    gc.set_threshold(*_THRESHOLDS)
