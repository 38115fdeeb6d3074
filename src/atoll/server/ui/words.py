"""How numbers are written on pages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

_KIB = 1024


def size(num_bytes: float) -> str:
    """1.4 MB, in powers of 1024 as disks and memory are counted here."""
    for unit in ("B", "KB", "MB", "GB"):
        if num_bytes < _KIB:
            return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 100 else f"{num_bytes:.1f} {unit}"
        num_bytes /= _KIB
    return f"{num_bytes:.1f} TB"


def percent(share: float | None) -> str:
    """92.3, of a share between 0 and 1."""
    return "–" if share is None else f"{100 * share:.1f}"


def points(difference: float | None) -> str:
    """+47.0, with its sign."""
    return "–" if difference is None else f"{100 * difference:+.1f}"


def dollars(amount: float | None) -> str:
    """$0.0042: as many places as an amount needs to be seen."""
    if amount is None:
        return "–"
    return f"${amount:.2f}" if amount >= 1 or amount == 0 else f"${amount:.4f}"


def count(number: int) -> str:
    """12,345."""
    return f"{number:,}"


def duration(seconds: float) -> str:
    """42 s, 3 min, 2.1 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def ago(at_s: float | None) -> str:
    """How long ago a Unix time was."""
    if at_s is None:
        return "never"
    passed_s = time.time() - at_s
    return "just now" if passed_s < 5 else f"{duration(passed_s)} ago"


FILTERS: Mapping[str, Callable[..., Any]] = {
    "size": size,
    "percent": percent,
    "points": points,
    "dollars": dollars,
    "count": count,
    "duration": duration,
    "ago": ago,
}
