"""Runs as processes of their own: started at low priority, found again after a restart of the server, and stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from atoll.errors import AtollError, UsageError
from atoll.files import write_atomic
from atoll.log import get_logger

logger = get_logger(__name__)

RECORD_NAME = "process.json"
OUTPUT_NAME = "process.log"
_NICE = 10
_CLOCK_STEP_S = 2.0  # a process's start is told by the wall clock, which may be set right meanwhile
_MAX_TAIL_BYTES = 8 << 10
_MAX_RECORD_BYTES = 64 << 10

Kind = Literal["tune", "eval"]


class RunBusyError(UsageError):
    """Another run is going on, or this one is."""

    http_status = 409
    code = "run_busy"


class ProcessRecord(BaseModel):
    """What `process.json` in a run's folder says. created_at: of the process, in unix seconds, as the system tells it.

    returncode: None while it runs, and for good where the server ended before the process did.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    created_at: float
    kind: Kind
    command: tuple[str, ...]
    has_been_stopped: bool = False
    returncode: int | None = None


class RunProcesses:
    """Starts, finds and stops the processes of runs, `max_running` at once. Methods block: call them in threads.

    No process is ever signalled by its number alone: another one may have got the number. It must have been started at
    the moment, and with the command, that were written down.
    """

    def __init__(self, max_running: int = 1) -> None:
        self._max_running = max_running
        self._lock = threading.Lock()
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._folders: set[Path] = set()

    def start(self, folder: Path, kind: Kind, arguments: Sequence[str]) -> ProcessRecord:
        """Run `atoll KIND ARGUMENTS` for the run in a folder. Raises RunBusyError, or AtollError if it cannot start."""
        # -P: nothing that lies in the run's folder may pass for a module.
        command = (sys.executable, "-P", "-m", "atoll", kind, *arguments)
        with self._lock:
            self._check_room(folder)
            try:
                child = self._spawn(folder, command)
                created_at = psutil.Process(child.pid).create_time()
            except (OSError, psutil.Error) as error:
                raise AtollError("the run could not be started", where=str(folder), why=str(error)) from error
            record = ProcessRecord(pid=child.pid, created_at=created_at, kind=kind, command=command)
            self._children[folder] = child
            self._folders.add(folder)
            _write(folder, record)
        logger.info("started a run", extra={"kind": kind, "pid": child.pid, "run": folder.name})
        return record

    def record(self, folder: Path) -> ProcessRecord | None:
        """What is known of the latest process of a run; its returncode is filled in once it has ended."""
        record = _read(folder)
        if record is None or record.returncode is not None:
            return record
        with self._lock:
            child = self._children.get(folder)
            code = child.poll() if child is not None and child.pid == record.pid else None
            if code is None:
                return record
            del self._children[folder]
        ended = record.model_copy(update={"returncode": code})
        _write(folder, ended)
        return ended

    def is_running(self, folder: Path) -> bool:
        """Whether the latest process of a run still runs."""
        self.record(folder)
        with self._lock:
            return self._process(folder) is not None

    def stop(self, folder: Path) -> None:
        """Ask for a checkpoint and an end; a second time, for an end at once. Raises UsageError where nothing runs."""
        record = self.record(folder)
        with self._lock:
            process = self._process(folder)
        if record is None or process is None:
            raise UsageError("this run is not going on, or somebody else has started it", mend="press Ctrl-C there")
        _write(folder, record.model_copy(update={"has_been_stopped": True}))
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            return  # it has just ended by itself

    def output(self, folder: Path) -> str:
        """The end of what the latest process printed."""
        try:
            with (folder / OUTPUT_NAME).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _MAX_TAIL_BYTES))
                return file.read(_MAX_TAIL_BYTES).decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def adopt(self, folders: Sequence[Path]) -> None:
        """Count the runs among `folders` that another server's life has left running."""
        with self._lock:
            self._folders.update(folder for folder in folders if (folder / RECORD_NAME).is_file())

    def _check_room(self, folder: Path) -> None:
        running = [other for other in self._folders if self._process(other) is not None]
        if folder in running:
            raise RunBusyError("this run is going on already")
        if len(running) >= self._max_running:
            names = ", ".join(sorted(other.name for other in running))
            raise RunBusyError(f"another run is going on: {names}", mend="wait for its end, or stop it first")

    def _process(self, folder: Path) -> psutil.Process | None:
        """The latest process of a run if it still runs. The caller holds the lock."""
        child = self._children.get(folder)
        if child is not None:  # until it is asked for its end nobody else can get its number
            return psutil.Process(child.pid) if child.poll() is None else None
        record = _read(folder)
        return _process_of(record) if record is not None and record.returncode is None else None

    def _spawn(self, folder: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
        with (folder / OUTPUT_NAME).open("wb") as output:
            child = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            # Requests go first: training takes what they leave. Threads that it starts later inherit this.
            psutil.Process(child.pid).nice(_NICE)
        except psutil.Error:
            logger.warning("a run keeps the server's priority", extra={"run": folder.name})
        return child


def _process_of(record: ProcessRecord) -> psutil.Process | None:
    """The very process of a record, if it still runs."""
    try:
        process = psutil.Process(record.pid)
        is_same = abs(process.create_time() - record.created_at) < _CLOCK_STEP_S
        is_ours = is_same and tuple(process.cmdline()) == record.command
        return process if is_ours and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _read(folder: Path) -> ProcessRecord | None:
    path = folder / RECORD_NAME
    try:
        if path.stat().st_size > _MAX_RECORD_BYTES:
            return None
        return ProcessRecord.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError):
        logger.warning("%s is damaged and not used", path)
        return None


def _write(folder: Path, record: ProcessRecord) -> None:
    write_atomic(folder / RECORD_NAME, record.model_dump_json(indent=2) + "\n")
