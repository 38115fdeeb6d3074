"""Where packed examples lie in their row, and what each of them begins with."""

from __future__ import annotations

from typing import NamedTuple


class Span(NamedTuple):
    """The own tokens [start, stop) of one example, which also sees all of [prefix_start, prefix_stop) before them."""

    start: int
    stop: int
    prefix_start: int = 0
    prefix_stop: int = 0
