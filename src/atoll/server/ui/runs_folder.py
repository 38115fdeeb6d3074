"""The folder of all runs: which there are, and how each one stands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from atoll.config.base import NAME_PATTERN
from atoll.errors import AtollError, NotFound
from atoll.server.ui.runs_log import RunLog, RunLogs, RunState
from atoll.server.ui.runs_process import ProcessRecord, RunProcesses
from atoll.training.checkpoint import latest_checkpoint
from atoll.training.events import EVENTS_NAME
from atoll.training.run_lock import running_process

MAX_RUNS = 500
FLEET_NAME = "fleet.yaml"
_MARKS = ("run.json", EVENTS_NAME, FLEET_NAME, "eval/results.json")

Status = Literal["running", "stopping", "evaluating", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Run:
    """One run. is_ours: its fleet file lies in its folder, so that this page can resume and evaluate it.

    changed_at: unix seconds of its latest sign of life.
    """

    name: str
    folder: Path
    status: Status
    state: RunState
    record: ProcessRecord | None
    has_checkpoint: bool
    has_results: bool
    is_ours: bool
    changed_at: float

    @property
    def is_going_on(self) -> bool:
        return self.status in ("running", "stopping", "evaluating")

    @property
    def can_stop(self) -> bool:
        """Whether this page started what runs."""
        return self.is_going_on and self.record is not None and self.record.returncode is None

    @property
    def can_resume(self) -> bool:
        return self.is_ours and not self.is_going_on and self.status != "finished"

    @property
    def can_evaluate(self) -> bool:
        return self.is_ours and self.status == "finished"


class RunsFolder:
    """Finds runs below one folder. Methods read files: call them in threads."""

    def __init__(self, root: Path, processes: RunProcesses) -> None:
        self.root = root
        self.processes = processes
        self._logs = RunLogs(MAX_RUNS)
        processes.adopt(self._folders())

    def latest(self) -> list[Run]:
        """The latest runs, those that go on first, then by their last sign of life; without their curves."""
        runs = [run for folder in self._folders() if (run := self._try_look(folder)) is not None]
        return sorted(runs, key=lambda run: (not run.is_going_on, -run.changed_at))

    def find(self, name: str) -> Run:
        """The run of that name. Raises NotFound, or DataError where its events are damaged."""
        folder = self.folder(name)
        return self._look(folder, self._logs.of(folder).refresh())

    def folder(self, name: str) -> Path:
        """The folder of the run of that name. Raises NotFound."""
        folder = self.root / name
        if not re.fullmatch(NAME_PATTERN, name) or not _is_run(folder):
            raise NotFound(f"there is no run named {name[:80]!r}", mend="see /ui/runs for those that there are")
        return folder

    def log(self, name: str) -> RunLog:
        """The events of the run of that name. Raises NotFound."""
        return self._logs.of(self.folder(name))

    def _folders(self) -> list[Path]:
        """Of the latest runs, in no order."""
        if not self.root.is_dir():
            return []
        folders = [path for path in self.root.iterdir() if re.fullmatch(NAME_PATTERN, path.name) and _is_run(path)]
        return sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)[:MAX_RUNS]

    def _try_look(self, folder: Path) -> Run | None:
        """None for a run that cannot be read: the others are still of interest."""
        try:
            return self._look(folder, self._logs.outline(folder))
        except (AtollError, OSError):
            return None

    def _look(self, folder: Path, state: RunState) -> Run:
        record = self.processes.record(folder)
        has_results = (folder / "eval" / "results.json").is_file()
        marks = [folder / name for name in (*_MARKS, "process.json")]
        changed_at = max([state.latest_at, *(path.stat().st_mtime for path in marks if path.is_file())])
        return Run(
            name=folder.name,
            folder=folder,
            status=self._status(folder, record, state, has_results),
            state=state,
            record=record,
            has_checkpoint=latest_checkpoint(folder) is not None,
            has_results=has_results,
            is_ours=(folder / FLEET_NAME).is_file(),
            changed_at=changed_at,
        )

    def _status(self, folder: Path, record: ProcessRecord | None, state: RunState, has_results: bool) -> Status:
        if record is not None and record.returncode is None and self.processes.is_running(folder):
            if record.has_been_stopped:
                return "stopping"
            return "running" if record.kind == "tune" else "evaluating"
        # Looking holds the lock for an instant; a run that has ended is not looked at, so that nobody's start meets it.
        if not state.is_finished and running_process(folder) is not None:
            return "running"
        if state.is_finished or (has_results and not state.adapters):
            return "finished"
        if state.error and state.error != "interrupted":
            return "failed"
        has_failed = record is not None and record.returncode not in (0, None) and not record.has_been_stopped
        return "failed" if has_failed else "stopped"


def _is_run(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in _MARKS)
