"""From a form to a run: its folder with data, task file and fleet file, and the process that trains."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.adapters.store import AdapterStore
from atoll.errors import UsageError
from atoll.files import fsync_dir, write_atomic
from atoll.server.ui.runs_folder import FLEET_NAME, Run, RunsFolder
from atoll.server.ui.runs_form import (
    TASK_NAME,
    TEST_NAME,
    TRAIN_NAME,
    RunForm,
    builtin_task,
    command_line,
    fleet_yaml,
    task_yaml,
)
from atoll.server.ui.runs_preview import longest_answer
from atoll.server.ui.runs_process import RunBusyError, RunProcesses
from atoll.server.ui.runs_upload import Uploads, make_splits

if TYPE_CHECKING:
    from atoll.model.load import BaseModel


class RunStarter:
    """Starts, resumes and evaluates runs; methods block: call them in threads.

    store: where finished adapters go, the server's own, so that they can be tried at once.
    """

    def __init__(self, runs: RunsFolder, uploads: Uploads, base: BaseModel, store: AdapterStore) -> None:
        self._runs = runs
        self._uploads = uploads
        self._base = base
        self._store = store

    def fleet_yaml(self, form: RunForm) -> str:
        """The fleet file that `start` would write."""
        return fleet_yaml(form, self._base.name, str((self._runs.root / form.name).absolute()))

    def command(self, verb: str, name: str, *options: str) -> str:
        """What somebody would type to do the same to the run of that name."""
        fleet = str((self._runs.root / name / FLEET_NAME).absolute())
        return command_line({"--store": str(self._store.root.absolute())}, verb, fleet, *options)

    def start(self, form: RunForm) -> None:
        """Make the run's folder and start to train. Raises UsageError, RunBusyError, DataError, ConfigError.

        The run's adapter is a new one: a next revision of one that is in use would answer in its place.
        """
        folder = self._runs.root / form.name
        if form.name in self._store.names():
            what = f"there is an adapter named {form.name} already"
            raise UsageError(what, where="name", mend="choose another name")
        if folder.exists():
            raise UsageError(f"there is a run named {form.name} already", where="name", mend="choose another name")
        if busy := [run.name for run in self._runs.latest() if run.is_going_on]:
            raise RunBusyError(f"another run is going on: {', '.join(busy)}", mend="wait for its end, or stop it first")
        self._runs.root.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=self._runs.root))
        try:
            self._fill(new, form)
            new.chmod(0o755)
            new.rename(folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        fsync_dir(self._runs.root)
        self._tune(folder)

    def resume(self, run: Run) -> None:
        """Go on from the last checkpoint, or from the start where there is none. Raises UsageError, RunBusyError."""
        if not run.can_resume:
            raise UsageError("this run cannot be resumed from here", mend="use `atoll tune FLEET --resume`")
        self._tune(run.folder, "--resume")

    def evaluate(self, run: Run) -> None:
        """Score the run's adapters. Raises UsageError, RunBusyError."""
        if not run.can_evaluate:
            raise UsageError("this run cannot be evaluated from here", mend="use `atoll eval FLEET`")
        self._processes.start(run.folder, "eval", self._arguments(run.folder))

    @property
    def _processes(self) -> RunProcesses:
        return self._runs.processes

    def _tune(self, folder: Path, *options: str) -> None:
        self._processes.start(folder, "tune", [*self._arguments(folder), *options])

    def _arguments(self, folder: Path) -> list[str]:
        return [str((folder / FLEET_NAME).absolute()), "--store", str(self._store.root.absolute())]

    def _fill(self, folder: Path, form: RunForm) -> None:
        if form.task:
            builtin_task(form.task)
        else:
            self._write_task(folder, form)
        write_atomic(folder / FLEET_NAME, self.fleet_yaml(form))

    def _write_task(self, folder: Path, form: RunForm) -> None:
        splits = make_splits(self._uploads.find(form.upload), form.inputs, form.target)
        targets = [row[form.target] for row in (*splits.train, *splits.test)]
        longest = longest_answer(self._base, sorted(set(targets), key=len)[-100:])
        write_atomic(folder / TASK_NAME, task_yaml(form, targets, longest))
        write_atomic(folder / TRAIN_NAME, _jsonl(splits.train))
        write_atomic(folder / TEST_NAME, _jsonl(splits.test))


def _jsonl(rows: Sequence[Mapping[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
