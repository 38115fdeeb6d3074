"""Processes of runs: found again by another server, stopped only if they are the very ones, one at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from atoll.errors import UsageError
from atoll.server.ui.runs_process import RECORD_NAME, ProcessRecord, RunBusyError, RunProcesses
from support.servers import wait_until

# A made-up fleet whose base model is a pipe that nobody writes to: the process waits in it until it is told to end.
FLEET = "base_model: {base}\nadapters: {{a: {{task: dates}}}}\noutput: {output}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    base = tmp_path / "base"
    base.mkdir()
    os.mkfifo(base / "config.json")
    (base / "model.safetensors").write_bytes(b"")
    (run / "fleet.yaml").write_text(FLEET.format(base=base, output=run))
    return run


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def start(processes: RunProcesses, folder: Path) -> ProcessRecord:
    return processes.start(folder, "eval", [str(folder / "fleet.yaml"), "--store", str(folder / "store")])


def end(record: ProcessRecord) -> None:
    psutil.Process(record.pid).kill()


def test_a_process_that_ends_leaves_its_code_and_its_words(tmp_path: Path) -> None:
    processes = RunProcesses()
    processes.start(tmp_path, "eval", ["--unheard-of"])
    wait_until(lambda: not processes.is_running(tmp_path), timeout_s=60)
    record = processes.record(tmp_path)
    assert record is not None
    assert record.returncode == 2
    assert "--unheard-of" in processes.output(tmp_path)


def test_a_run_gives_way_to_requests_and_hears_no_ctrl_c_of_the_server(folder: Path) -> None:
    record = start(RunProcesses(), folder)
    try:
        assert psutil.Process(record.pid).nice() >= 10
        assert os.getsid(record.pid) == record.pid
    finally:
        end(record)


def test_another_server_finds_a_run_and_stops_it(folder: Path) -> None:
    record = start(RunProcesses(), folder)
    second = RunProcesses()
    assert second.is_running(folder)
    second.stop(folder)
    wait_until(lambda: not second.is_running(folder), timeout_s=60)
    found = second.record(folder)
    assert found is not None
    assert (found.pid, found.has_been_stopped) == (record.pid, True)


def test_only_one_run_goes_on_and_one_that_was_left_running_counts(folder: Path, tmp_path: Path) -> None:
    record = start(RunProcesses(), folder)
    other = tmp_path / "other"
    other.mkdir()
    second = RunProcesses()
    second.adopt([folder])
    try:
        with pytest.raises(RunBusyError, match="run"):
            start(second, other)
        with pytest.raises(RunBusyError, match="already"):
            start(second, folder)
    finally:
        end(record)


@pytest.mark.parametrize("is_same", ["command", "start", "nothing"])
def test_a_process_that_only_got_the_number_is_never_signalled(
    tmp_path: Path, stranger: subprocess.Popen[bytes], is_same: str
) -> None:
    process = psutil.Process(stranger.pid)
    command = tuple(process.cmdline()) if is_same == "command" else ("atoll", "tune")
    created_at = process.create_time() if is_same == "start" else process.create_time() - 3600
    record = ProcessRecord(pid=stranger.pid, created_at=created_at, kind="tune", command=command)
    (tmp_path / RECORD_NAME).write_text(record.model_dump_json())
    processes = RunProcesses()
    assert not processes.is_running(tmp_path)
    with pytest.raises(UsageError):
        processes.stop(tmp_path)
    assert stranger.poll() is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"pid": "x"}', b"[" * 70_000])
def test_a_damaged_record_is_no_process(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RECORD_NAME).write_bytes(content)
    assert RunProcesses().record(tmp_path) is None


def test_a_record_is_json_for_others_to_read(folder: Path) -> None:
    record = start(RunProcesses(), folder)
    try:
        assert json.loads((folder / RECORD_NAME).read_bytes())["pid"] == record.pid
    finally:
        end(record)
