"""`atoll serve` as a process of its own: its words, its signals, its exit codes."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx2 as httpx
import pytest

from support.engines import World

START_S = 120
COMMAND = [sys.executable, "-c", "from atoll.cli.main import main; main()", "serve"]


@pytest.fixture
def process(world: World) -> Iterator[subprocess.Popen[str]]:
    folder = world.base_folder.parent
    command = [*COMMAND, "--port", "0", "--store", str(folder / "store"), "--adapter-root", str(folder)]
    command += ["--pin", "compare"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def read_until(process: subprocess.Popen[str], word: str) -> str:
    """What the process prints up to a line with `word`."""
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    stdout = process.stdout

    def read() -> None:
        for line in stdout:
            lines.put(line)

    threading.Thread(target=read, daemon=True).start()
    text = ""
    while word not in text:
        text += lines.get(timeout=START_S)
    return text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_and_ends_with_0(world: World, process: subprocess.Popen[str], number: signal.Signals) -> None:
    text = read_until(process, "stop with Ctrl-C")
    assert f"base model {world.base_folder}" in text  # the contracts' own: no --base-model was given
    assert all(adapter.id in text for adapter in world.adapters.values())
    found = re.search(r"listening on (http://127\.0\.0\.1:\d+)", text)
    assert found is not None
    url = found[1]
    example = next(line for line in text.splitlines() if "curl " in line)
    answer = subprocess.run(["bash", "-c", example.strip()], capture_output=True, text=True, check=True).stdout
    assert '"generated_text"' in answer
    body = {"inputs": {"text": "x"}, "parameters": {"adapter_id": "sentiment"}}
    assert httpx.post(f"{url}/generate", json=body, timeout=60).status_code == 200
    local = {"inputs": "x", "parameters": {"adapter_id": "gamma", "adapter_source": "local", "max_new_tokens": 2}}
    assert httpx.post(f"{url}/generate", json=local, timeout=60).status_code == 200
    adapters = httpx.get(f"{url}/atoll/state", timeout=60).json()["adapters"]
    assert {adapter["name"]: adapter["pinned"] for adapter in adapters}["compare"]
    process.send_signal(number)
    assert process.wait(timeout=30) == 0
    assert "Traceback" not in process.communicate()[1]


def test_a_running_request_is_answered_before_it_stops(process: subprocess.Popen[str]) -> None:
    text = read_until(process, "stop with Ctrl-C")
    found = re.search(r"listening on (\S+)", text)
    assert found is not None
    body = {"inputs": "x", "parameters": {"max_new_tokens": 300, "ignore_eos_token": True}}
    with httpx.stream("POST", f"{found[1]}/generate_stream", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        os.kill(process.pid, signal.SIGTERM)
        assert '"generated_text":null' not in [line for line in lines if line][-1]
    assert process.wait(timeout=30) == 0


def run(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "--store", str(world.base_folder.parent / "store"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S)


def test_a_port_in_use(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run(world, "--port", str(port))
    assert result.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "choose another port" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--base-model", "/no/such/folder"], 4, "/no/such/folder"),
        (["--adapter-root", "/no/such/folder"], 2, "is not a folder"),
        (["--host", "no.such.host.invalid"], 2, "no address"),
        (["--num-slots", "0"], 2, "--num-slots"),
        (["--port", "99999"], 2, "--port"),
        (["--max-length", "100000"], 2, "512"),
    ],
)
def test_wrong_use(world: World, arguments: list[str], code: int, message: str) -> None:
    result = run(world, "--port", "0", *arguments)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
