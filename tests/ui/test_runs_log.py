"""What a run's events say, read as they are appended, over a stop, a resume and a new beginning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.server.ui.runs_folder import RunsFolder
from atoll.server.ui.runs_log import MAX_LOGS, MAX_POINTS, RunLog
from atoll.server.ui.runs_process import RunProcesses
from atoll.training.events import EventLog
from support.files import unreadable_as_it_was


class Clock:
    """A second passes with every event."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(tmp_path: Path, clock: Clock) -> Iterator[EventLog]:
    with EventLog(tmp_path, resume=False, clock=clock) as opened:
        begin(opened)
        yield opened


def begin(log: EventLog, *, resumed: bool = False) -> None:
    log.write({"event": "start", "adapters": ["a", "b"], "resumed": resumed})
    log.write({"event": "base", "name": "tiny", "digest": "sha256:0", "num_params": 5})
    for name, tokens in (("a", 1000.0), ("b", 3000.0)):
        log.write({"event": "data", "adapter": name, "task": "t", "num_examples": 7})
        log.write({"event": "plan", "adapter": name, "total_steps": 10, "planned_tokens": tokens})


def progress(name: str, step: int, **fields: Any) -> dict[str, Any]:
    return {
        "event": "progress", "name": name, "step": step, "total_steps": 10, "step_loss": 2.0 / (step + 1),
        "validation_loss": None, "learning_rate": 1e-3, "grad_norm": 0.5, "num_tokens": 100 * step,
        "seconds": float(step), "cost_usd": 0.001 * step, "finished": False,
    } | fields  # fmt: skip


def test_adapters_are_there_before_their_first_step(tmp_path: Path, log: EventLog) -> None:
    state = RunLog(tmp_path).refresh()
    assert list(state.adapters) == ["a", "b"]
    assert (state.share_done, state.remaining_s, state.num_tokens) == (0.0, None, 0)


def test_what_is_appended_is_added_to_what_was_read(tmp_path: Path, log: EventLog) -> None:
    reader = RunLog(tmp_path)
    reader.refresh()
    for step in range(1, 6):
        log.write(progress("a", step))
        state = reader.refresh()
        assert state.adapters["a"].step == step
    assert [point[1] for point in state.adapters["a"].points] == [1, 2, 3, 4, 5]
    assert state.share_done == pytest.approx(0.5 * 1000 / 4000)
    assert state.tokens_per_s == pytest.approx(100)
    assert state.remaining_s == pytest.approx((500 + 3000) / 100)
    assert (state.seconds, state.cost_usd) == (5.0, 0.005)


def test_only_points_that_are_new_are_told_again(tmp_path: Path, log: EventLog, clock: Clock) -> None:
    reader = RunLog(tmp_path)
    log.write(progress("a", 1))
    middle = clock.now
    log.write(progress("a", 2))
    reader.refresh()
    assert [point[1] for point in reader.points_after(0)["a"]] == [1, 2]
    assert [point[1] for point in reader.points_after(middle)["a"]] == [2]


def test_validation_is_a_point_only_where_it_was_measured(tmp_path: Path, log: EventLog) -> None:
    for step, value in ((1, None), (2, 0.9), (3, 0.9), (4, 0.7)):
        log.write(progress("a", step, validation_loss=value))
    state = RunLog(tmp_path).refresh()
    assert [point[3] for point in state.adapters["a"].points] == [None, 0.9, None, 0.7]
    assert state.adapters["a"].best_loss == 0.7


def test_a_resumed_run_keeps_its_curves_and_a_new_one_begins_again(tmp_path: Path, log: EventLog, clock: Clock) -> None:
    reader = RunLog(tmp_path)
    for step in (1, 2):
        log.write(progress("a", step))
    log.write({"event": "end", "finished": False, "adapters": [], "seconds": 2.0, "cost_usd": 0.002})
    with EventLog(tmp_path, resume=True, clock=clock) as resumed:
        begin(resumed, resumed=True)
        resumed.write({"event": "resumed", "checkpoint": "c", "num_passes": 2})
        resumed.write(progress("a", 3))
    state = reader.refresh()
    assert [point[1] for point in state.adapters["a"].points] == [1, 2, 3]
    assert state.started_at == 1001
    with EventLog(tmp_path, resume=False, clock=clock) as fresh:
        begin(fresh)
        for step in range(1, 10):  # longer than the old file: size alone would not tell
            fresh.write(progress("a", step))
    state = reader.refresh()
    assert [point[1] for point in state.adapters["a"].points] == list(range(1, 10))


def test_steps_that_are_done_again_after_a_checkpoint_are_drawn_once(
    tmp_path: Path, log: EventLog, clock: Clock
) -> None:
    for step in (1, 2, 3, 4):
        log.write(progress("a", step))
    with EventLog(tmp_path, resume=True, clock=clock) as resumed:
        begin(resumed, resumed=True)
        resumed.write({"event": "resumed", "checkpoint": "c", "num_passes": 2})
        for step in (3, 4, 5):
            resumed.write(progress("a", step))
    state = RunLog(tmp_path).refresh()
    assert [point[1] for point in state.adapters["a"].points] == [1, 2, 3, 4, 5]


def test_a_long_run_is_thinned_out_but_its_ends_and_validation_stay(tmp_path: Path, log: EventLog) -> None:
    count = 5 * MAX_POINTS
    for step in range(1, count + 1):
        log.write(progress("a", step, validation_loss=0.5 if step == 7 else None))
    points = RunLog(tmp_path).refresh().adapters["a"].points
    assert MAX_POINTS / 2 < len(points) <= 2 * MAX_POINTS + 1
    assert points[0][1] == 1
    assert points[-1][1] >= count - 16
    assert [point[1] for point in points if point[3] is not None] == [7]


def test_events_of_another_version_do_not_hide_the_rest(tmp_path: Path, log: EventLog) -> None:
    log.write({"event": "plan", "adapter": 5})
    log.write({"event": "unheard of"})
    log.write(progress("a", 1, step_loss=float("nan")))
    log.write(progress("a", 2))
    state = RunLog(tmp_path).refresh()
    assert state.adapters["a"].step == 2
    assert [point[1] for point in state.adapters["a"].points] == [2]


def test_a_run_that_has_failed_says_why(tmp_path: Path, log: EventLog) -> None:
    log.write({"event": "failed", "error": "the gradient is not finite"})
    assert RunLog(tmp_path).refresh().error == "the gradient is not finite"


def test_a_list_of_many_runs_reads_again_only_what_has_changed(tmp_path: Path) -> None:
    names = [f"run-{number:03}" for number in range(2 * MAX_LOGS)]
    for name in names:
        with EventLog(tmp_path / name, resume=False) as log:
            begin(log)
            log.write(progress("a", 1))
            log.write({"event": "end", "finished": True, "seconds": 1.0, "cost_usd": 0.0})
    runs = RunsFolder(tmp_path, RunProcesses())
    assert {run.name for run in runs.latest()} == set(names)
    for name in names:
        unreadable_as_it_was(tmp_path / name / "events.jsonl")
    assert {run.name for run in runs.latest()} == set(names)
    assert all(run.state.adapters["a"].step == 1 for run in runs.latest())
    assert not any(adapter.points for run in runs.latest() for adapter in run.state.adapters.values())
    with EventLog(tmp_path / names[0], resume=False) as log:
        begin(log)
        log.write(progress("a", 7))
    (changed,) = [run for run in runs.latest() if run.name == names[0]]
    assert changed.state.adapters["a"].step == 7
    assert [point[1] for point in runs.find(names[0]).state.adapters["a"].points] == [7]
