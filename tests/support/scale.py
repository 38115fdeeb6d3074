"""How much a test does: seconds by default, all of it in `make nightly`, which finds the files that import this."""

from __future__ import annotations

import os

IS_NIGHTLY = os.environ.get("ATOLL_NIGHTLY") == "1"


def scaled(quick: int, nightly: int) -> int:
    """The size of a test for this run."""
    return nightly if IS_NIGHTLY else quick
