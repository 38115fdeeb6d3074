"""Which rows of a batch belong to which adapter slot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

BASE_SLOT = -1
"""The slot of rows that the bare base model answers."""


class Segment(NamedTuple):
    """Rows `start` to `stop` (exclusive) belong to `slot`."""

    slot: int
    start: int
    stop: int


@dataclass(frozen=True)
class Routing:
    """The segments of one batch: in order, without gaps, each slot at most once.

    The batch builder puts the rows of one slot side by side, so that a layer works on a few large slices and never
    has to gather or scatter rows.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        row = 0
        for segment in self.segments:
            if segment.start != row or segment.stop <= segment.start:
                raise ValueError(f"segments must follow one another without gaps: {self.segments}")
            row = segment.stop
        slots = [segment.slot for segment in self.segments]
        if len(set(slots)) != len(slots):
            raise ValueError(f"the rows of one slot must stand side by side: {self.segments}")

    @property
    def num_rows(self) -> int:
        return self.segments[-1].stop if self.segments else 0

    @classmethod
    def from_lengths(cls, lengths: Iterable[tuple[int, int]]) -> Routing:
        """Build from (slot, number of rows) in batch order; neighbours of the same slot are joined."""
        segments: list[Segment] = []
        row = 0
        for slot, length in lengths:
            if length <= 0:
                continue
            if segments and segments[-1].slot == slot:
                segments[-1] = segments[-1]._replace(stop=row + length)
            else:
                segments.append(Segment(slot, row, row + length))
            row += length
        return cls(tuple(segments))

    @classmethod
    def from_slots(cls, slots: Sequence[int]) -> Routing:
        """Build from one slot a row; raises ValueError where the rows of a slot do not stand side by side."""
        return cls.from_lengths((slot, 1) for slot in slots)
