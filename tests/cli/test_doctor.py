"""`atoll doctor` and `atoll completion`: what they find, and what a shell is told."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atoll.adapters.store import AdapterStore
from atoll.cli import findings
from atoll.cli.completion import fleet_files, task_names
from atoll.cli.ending import run_to_its_end
from atoll.cli.findings_compute import expectation, gpu, numbers
from atoll.cli.main import app
from atoll.memory import Memory
from support.adapters import save_random_adapter
from support.tiny import make_model


def test_doctor_names_each_thing_and_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_to_its_end(app, ["doctor", "--json", "--store", str(tmp_path)]) in (0, 1)
    told = json.loads(capsys.readouterr().out)
    names = [finding["name"] for finding in told["findings"]]
    assert names[:4] == ["python", "versions", "processor", "memory"]
    assert {"gpu", "numbers", "expect", "clock", "port", "hub", "kernels"} <= set(names)
    assert told["ok"] + told["warn"] + told["fail"] == len(names)
    assert all(finding["mend"] for finding in told["findings"] if finding["state"] != "ok")


def test_a_broken_adapter_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = AdapterStore(tmp_path / "store")
    stored = store.publish("mood", save_random_adapter(tmp_path / "a", make_model()))
    assert findings.adapters(store.root).state == "ok"
    shutil.rmtree(stored.folder)
    found = findings.adapters(store.root)
    assert (found.state, found.mend) == ("fail", "restore them from a backup, or take them out: atoll rm mood")
    assert run_to_its_end(app, ["doctor", "--store", str(store.root)]) == 1
    assert "fail  adapters:" in capsys.readouterr().out
    assert run_to_its_end(app, ["rm", "mood", "--yes", "--store", str(store.root)]) == 0
    assert findings.adapters(store.root).state == "ok"


@pytest.mark.parametrize(("available", "state"), [(0.5, "fail"), (2.0, "warn"), (6.0, "ok")])
def test_memory_is_what_this_process_may_take(available: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.memory.main_memory", lambda: Memory(8 * 2**30, int(available * 2**30)))
    found = findings.memory()
    assert (found.state, found.text) == (state, f"{available} of 8.0 GiB free")


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert findings.listening(port).state == "warn"
    assert findings.listening(port).state == "ok"


def test_settings_are_shown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:secret@hub.example.org")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = findings.hub_settings()
    assert found.state == "warn"
    assert "secret" not in found.text
    assert "hub.example.org" in found.text


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert findings.disk("cache", tmp_path / "file" / "below", "ATOLL_CACHE").state == "fail"
    assert findings.disk("cache", tmp_path / "not" / "there" / "yet", "ATOLL_CACHE").state in ("ok", "warn")


def test_a_clock_that_is_behind_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings.clock().state == "ok"
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert findings.clock().state == "fail"


def test_what_computes_is_named() -> None:
    assert gpu().text
    assert numbers().text.startswith("--dtype auto is ")
    assert "tokens/s" in expectation().text


def completed(words: str, store: Path, folder: Path) -> list[str]:
    """What bash would offer for the last of the words."""
    environment = os.environ | {
        "_ATOLL_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "ATOLL_STORE": str(store),
    }
    command = [sys.executable, "-c", "from atoll.cli.main import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=True)
    return done.stdout.split()


def test_a_shell_completes_commands_options_adapters_and_tasks(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    store.publish("mood", save_random_adapter(tmp_path / "a", make_model()))
    assert completed("atoll t", store.root, tmp_path) == ["tasks", "tune"]
    assert completed("atoll show ", store.root, tmp_path) == ["mood"]
    assert completed("atoll show --st", store.root, tmp_path) == ["--store"]
    assert completed(f"atoll show --store {tmp_path}/none m", store.root, tmp_path) == []
    assert "glue_sst2" in completed("atoll tasks show glue", store.root, tmp_path)


def test_fleet_files_are_told_from_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fleet.yaml").write_text("adapters: {a: {task: x}}\n")
    (tmp_path / "other.yaml").write_text("name: x\n")
    (tmp_path / "folder").mkdir()
    assert fleet_files("") == ["fleet.yaml", "folder/"]
    assert fleet_files("fl") == ["fleet.yaml"]
    assert fleet_files("nowhere/x") == []
    assert "glue_sst2" in task_names("glue_s")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_to_its_end(app, ["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_ATOLL_COMPLETE" in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True, check=False).returncode == 0
