"""The events of a run: what a second process reads while they are written, and after a crash."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from atoll.errors import DataError
from atoll.training.events import EVENTS_NAME, EventLog, read_events


def log(folder: Path, *, resume: bool = False) -> EventLog:
    return EventLog(folder, resume=resume, clock=itertools.count(100.0).__next__)


def progress(name: str, step: int, *, finished: bool = False, num_tokens: int = 0) -> dict[str, Any]:
    return {"event": "progress", "name": name, "step": step, "finished": finished, "num_tokens": num_tokens}


def test_a_reader_gets_each_event_once_and_with_its_time_while_they_are_written(tmp_path: Path) -> None:
    assert read_events(tmp_path) == ([], 0)
    with log(tmp_path) as writer:
        writer.write({"event": "base", "name": "ä"})
        events, offset = read_events(tmp_path)
        assert events == [{"event": "base", "name": "ä", "time": 100.0}]
        assert read_events(tmp_path, offset) == ([], offset)
        writer.write({"event": "plan"})
        writer.write({"event": "end"})
        events, offset = read_events(tmp_path, offset)
        assert [event["event"] for event in events] == ["plan", "end"]
    assert offset == (tmp_path / EVENTS_NAME).stat().st_size


def test_of_the_passes_of_a_step_one_is_kept_and_all_come_back_with_a_time(tmp_path: Path) -> None:
    with log(tmp_path) as writer:
        for event in [
            progress("a", 0, num_tokens=1),
            progress("b", 0),
            progress("a", 0, num_tokens=2),
            progress("a", 1),
            progress("a", 1),
            progress("a", 1, finished=True),
        ]:
            assert writer.write(event)["time"] >= 100
    kept = [(event["name"], event["step"], event["finished"]) for event in read_events(tmp_path)[0]]
    assert kept == [("a", 0, False), ("b", 0, False), ("a", 1, False), ("a", 1, True)]


def test_a_new_run_begins_the_file_again_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    for number, (resume, expected) in enumerate([(False, [0]), (True, [0, 1]), (False, [2]), (True, [2, 3])]):
        with log(tmp_path, resume=resume) as writer:
            writer.write({"event": "start", "number": number})
        assert [event["number"] for event in read_events(tmp_path)[0]] == expected


def test_a_reader_of_a_file_that_was_begun_again_begins_again_too(tmp_path: Path) -> None:
    with log(tmp_path) as writer:
        for number in range(5):
            writer.write({"event": "plan", "number": number})
    _, offset = read_events(tmp_path)
    with log(tmp_path) as writer:
        writer.write({"event": "start"})
    events, offset = read_events(tmp_path, offset)
    assert [event["event"] for event in events] == ["start"]
    assert offset == (tmp_path / EVENTS_NAME).stat().st_size


@pytest.mark.parametrize("torn", [b'{"event": "progr', b"\xff" * 70_000, b"{"])
def test_a_line_that_a_crash_tore_is_no_event_and_the_next_run_cuts_it_off(tmp_path: Path, torn: bytes) -> None:
    with log(tmp_path) as writer:
        writer.write({"event": "base"})
    path = tmp_path / EVENTS_NAME
    path.write_bytes(path.read_bytes() + torn)
    events, offset = read_events(tmp_path)
    assert [event["event"] for event in events] == ["base"]
    with log(tmp_path, resume=True) as writer:
        writer.write({"event": "resumed"})
    assert [event["event"] for event in read_events(tmp_path, offset)[0]] == ["resumed"]
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["base", "resumed"]


@pytest.mark.parametrize("line", ["not JSON", "[1]", '{"name": "a"}', '{"event": 1}', ""])
def test_a_damaged_line_is_told(tmp_path: Path, line: str) -> None:
    (tmp_path / EVENTS_NAME).write_text(line + "\n")
    with pytest.raises(DataError, match="damaged"):
        read_events(tmp_path)
