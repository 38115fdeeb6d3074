"""What a run tells while it works, one JSON object a line, so that other processes can follow it.

<run>/events.jsonl   appended and flushed at once; a new run begins the file again, a resumed one goes on with it
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from atoll.errors import DataError

EVENTS_NAME = "events.jsonl"
# What one call of `read_events` reads at most, so that a page that opens a long run is answered in pieces.
_MAX_READ_BYTES = 4 * 1024 * 1024
_BLOCK_BYTES = 64 * 1024


class EventLog:
    """The writer of a run's events. Only one process may write at a time: hold the run's lock.

    Of an adapter's progress it keeps one event for each step, though passes tell it more often.
    """

    def __init__(self, folder: Path, *, resume: bool, clock: Callable[[], float] = time.time) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self._kept: dict[str, tuple[int, bool]] = {}
        path = folder / EVENTS_NAME
        self._file = open(path, "r+b" if resume and path.exists() else "wb")  # noqa: SIM115
        self._file.truncate(_whole_lines(path))
        self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._file.close()

    def write(self, event: dict[str, Any]) -> dict[str, Any]:
        """Keep an event. Returns it with its `time`, in seconds of the Unix epoch, whether it was kept or not."""
        event = event | {"time": self._clock()}
        if event["event"] == "progress":
            state = (event["step"], event["finished"])
            if self._kept.get(event["name"]) == state:
                return event
            self._kept[event["name"]] = state
        self._file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        return event


def read_events(folder: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole events of a run from `offset` on, some megabytes at most, and the offset to go on from.

    offset: 0, or what an earlier call returned. A line that is still being written is left for the next call. A run
    without the file has no events, and where the file was begun again and is shorter now, reading begins again too.
    Raises DataError for a damaged line.
    """
    path = folder / EVENTS_NAME
    try:
        with open(path, "rb") as file:
            start = offset if offset <= file.seek(0, os.SEEK_END) else 0
            file.seek(start)
            data = file.read(_MAX_READ_BYTES)
    except FileNotFoundError:
        return [], 0
    data = data[: data.rfind(b"\n") + 1]
    return [_parsed(line, path) for line in data.splitlines()], start + len(data)


def _parsed(line: bytes, path: Path) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        raise DataError("a line of the run's events is damaged", where=str(path), mend="remove the file")
    return event


def _whole_lines(path: Path) -> int:
    """The length of a file without a last line that a crash tore."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
