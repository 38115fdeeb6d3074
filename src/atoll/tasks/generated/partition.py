"""How generated facts are divided: each fact belongs to one split for ever, by a hash of what it says."""

from __future__ import annotations

import hashlib
import random
from typing import Literal

Split = Literal["train", "validation", "test"]

NUM_ROWS: dict[Split, int] = {"train": 2_000, "validation": 200, "test": 500}
_TENTHS: tuple[Split, ...] = ("train",) * 6 + ("validation",) * 1 + ("test",) * 3


def split_of(fact: str) -> Split:
    """The split that a fact belongs to: six tenths train, one validation, three test; the same on every machine."""
    return _TENTHS[int.from_bytes(hashlib.sha256(fact.encode()).digest()[:8], "big") % len(_TENTHS)]


def split_random(task: str, split: Split, seed: int) -> random.Random:
    """A random source of its own for one split of one task; the same on every machine."""
    return random.Random(f"{task}/{split}/{seed}")
