"""Examples that lie side by side in one row, given by where each begins and the last ends."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from atoll.kernels.spans import Span


def spans_between(starts: Sequence[int]) -> list[Span]:
    """[0, 3, 5] -> two examples, of three tokens and of two, that share nothing."""
    return [Span(start, stop) for start, stop in itertools.pairwise(starts)]
