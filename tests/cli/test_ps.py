"""`atoll ps`: the state of a running server on a terminal and as JSON."""

from __future__ import annotations

import io
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from atoll.cli.main import app, main
from atoll.cli.output import plain
from atoll.cli.ps import _view
from atoll.server.keys.accounts import Accounts
from atoll.server.keys.database import Database, database_url
from atoll.server.keys.keys import KeyStore, NewKey
from support.servers import Served, served_world, wait_until

COMMAND = [sys.executable, "-c", "from atoll.cli.main import main; main()", "ps"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_world(tmp_path_factory.mktemp("ps"), num_slots=2) as served:
        for name in ("alpha", "beta", "gamma"):
            body = {"inputs": "x", "parameters": {"adapter_id": name, "max_new_tokens": 2}}
            assert httpx.post(f"{served.url}/generate", json=body).status_code == 200
        served.engine.pin(served.world.adapters["gamma"])
        wait_until(lambda: served.engine.stats().num_running == 0)
        yield served


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["ps", *arguments], env={"COLUMNS": "200", "ATOLL_KEY": None, "ATOLL_URL": None})
    assert result.exit_code == code, result.output
    return result.output


def test_the_terminal_shows_requests_cache_and_adapters_by_tier(served: Served) -> None:
    lines = run("--url", served.url).splitlines()
    text = "\n".join(lines)
    assert "0 running, 0 waiting, 3 finished" in text
    assert "2 of 2 slots" in text
    rows = {line.split()[0]: line.split()[1:] for line in lines if "@1" in line}
    assert rows == {
        "beta@1": ["device", "0", "0"],
        "gamma@1": ["device", "0", "0", "pinned"],
        "alpha@1": ["host", "0", "0"],
    }


def test_json_is_the_server_s_own_account(served: Served) -> None:
    state = json.loads(run("--url", f"{served.url}/", "--json"))
    stats = served.engine.stats()
    assert state["requests"]["finished"] == stats.num_finished
    assert state["kv"]["blocks"] == stats.num_blocks
    assert state["tiers"]["slots"] == 2
    assert [held["id"] for held in state["adapters"] if held["pinned"]] == ["gamma@1"]
    assert state["adapters"][0]["digest"] == served.world.adapters[state["adapters"][0]["name"]].digest


def test_watching_goes_on_until_it_is_interrupted(served: Served) -> None:
    command = [*COMMAND, "--url", served.url, "--json", "--watch", "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: [lines.put(line) for line in process.stdout or ()], daemon=True).start()
        states = [json.loads(lines.get(timeout=60)) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    times_s = [state["uptime_s"] for state in states]
    assert times_s == sorted(set(times_s))


def test_what_is_wrong_is_told_in_one_message(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(url: str) -> str:
        monkeypatch.setattr(sys, "argv", ["atoll", "ps", "--url", url])
        with pytest.raises(SystemExit) as exit:
            main()
        assert exit.value.code
        return capsys.readouterr().err

    assert "no Atoll server answers" in fails("http://127.0.0.1:9")
    assert "is not a server's address" in fails("file:///etc/passwd")
    assert "is not an Atoll server" in fails(f"{served.url}/v1")


def test_a_server_with_keys_shows_itself_to_admins_alone(tmp_path: Path) -> None:
    database = Database(database_url(str(tmp_path / "atoll.db")))
    store = KeyStore(database)
    admin = store.create(NewKey(name="admin", scopes=frozenset({"admin"})))[1]
    user = store.create(NewKey(name="user"))[1]
    with Accounts(database, tmp_path / "journals") as accounts, served_world(tmp_path, accounts=accounts) as served:
        assert "0 running" in run("--url", served.url, "--key", admin)
        assert run("--url", served.url, "--key", user, code=1) == ""
        assert httpx.get(f"{served.url}/atoll/state", headers={"x-api-key": user}).status_code == 403
        assert httpx.get(f"{served.url}/atoll/state").status_code == 401
    database.close()


def test_names_cannot_steer_the_terminal(served: Served) -> None:
    state = json.loads(run("--url", served.url, "--json"))
    state["requests"]["waiting_by_adapter"] = {"evil\x1b[2J\r\n[red]": 1}
    console = Console(markup=False, width=200, record=True, file=io.StringIO())
    console.print(_view(state))
    text = console.export_text()
    assert "evil?[2J??[red]" in text
    assert "\x1b" not in text
    assert plain("plain äß") == "plain äß"
