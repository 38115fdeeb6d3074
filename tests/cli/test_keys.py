"""`atoll keys`, and `atoll serve` with keys and without: processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from typer.testing import CliRunner

from atoll.cli.keys import expiry_s
from atoll.cli.main import app
from atoll.errors import AtollError, UsageError
from support.engines import World
from support.servers import wait_until

ATOLL = [sys.executable, "-c", "from atoll.cli.main import main; main()"]
START_S = 120


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of processes whose data folder is empty."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ATOLL_DATABASE")}
    return kept | {"XDG_DATA_HOME": str(tmp_path / "data")}


def keys(environment: dict[str, str], *arguments: str, code: int = 0) -> str:
    """What `atoll keys` says on stdout, in this process: most of a new one would be spent on imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", environment["XDG_DATA_HOME"])
        patch.delenv("ATOLL_DATABASE", raising=False)
        done = CliRunner().invoke(app, ["keys", *arguments])
    got = done.exception.exit_code if isinstance(done.exception, AtollError) else done.exit_code
    assert got == code, (done.output, done.exception)
    return str(done.exception) if isinstance(done.exception, AtollError) else done.stdout


def listed(environment: dict[str, str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in keys(environment, "list", "--json").splitlines()]


@contextmanager
def served(
    world: World, environment: dict[str, str], *arguments: str
) -> Iterator[tuple[str, subprocess.Popen[str], Path]]:
    """A real server: its address, its process, and the file that its log goes to."""
    log = Path(environment["XDG_DATA_HOME"]).parent / "serve.log"
    command = [*ATOLL, "serve", "--port", "0", "--store", str(world.base_folder.parent / "store"), *arguments]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment)
    assert process.stdout is not None
    try:
        text = ""
        for line in process.stdout:
            text += line
            if "stop with Ctrl-C" in line:
                break
        found = re.search(r"listening on (\S+)", text)
        assert found is not None, log.read_text()
        yield found[1].replace("0.0.0.0", "127.0.0.1"), process, log
    finally:
        process.kill()
        process.communicate()


def refused(world: World, environment: dict[str, str], *arguments: str) -> str:
    """The error of a server that does not start."""
    command = [*ATOLL, "serve", "--port", "0", "--store", str(world.base_folder.parent / "store"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, env=environment, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_key_is_printed_alone_and_never_again(environment: dict[str, str]) -> None:
    shown = keys(environment, "create", "--tenant", "acme", "--adapter", "support-*", "--concurrency", "2").strip()
    assert re.fullmatch(r"atoll-[0-9a-f]{12}-[\w-]{43}", shown)
    (key,) = listed(environment)
    assert (key["tenant"], key["adapters"], key["concurrency"], key["scopes"]) == ("acme", ["support-*"], 2, ["use"])
    table = keys(environment, "list")
    assert "support-*" in table
    assert "2 at once" in table
    secret = shown.rpartition(key["id"])[2]
    assert secret not in table
    assert secret not in json.dumps(key)


def test_keys_are_revoked_by_their_ids(environment: dict[str, str]) -> None:
    made = [json.loads(keys(environment, "create", "--json")) for _ in range(2)]
    assert json.loads(keys(environment, "revoke", made[0]["id"], "--json")) == {"revoked": made[0]["id"]}
    assert {key["id"]: key["revoked"] is not None for key in listed(environment)} == {
        made[0]["id"]: True,
        made[1]["id"]: False,
    }
    assert "no key 'nobody'" in keys(environment, "revoke", "nobody", code=4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tenant", "a\nb"], "not allowed"),
        (["--adapter", ""], "patterns"),
        (["--expires", "soon"], "--expires"),
        (["--expires", "2001-01-01"], "is over"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(environment: dict[str, str], arguments: list[str], said: str) -> None:
    assert said in keys(environment, "create", *arguments, code=2)


def test_keys_end_after_a_time_or_on_a_day() -> None:
    assert expiry_s("12h", 1000.5) == 1000 + 12 * 3600
    assert expiry_s("30d", 0) == 30 * 86400
    assert expiry_s("1970-01-03", 0) == 2 * 86400
    for wrong in ("", "0d", "-1d", "1y", "d", "99999999d", "1.5h", "2027-13-01"):
        with pytest.raises(UsageError):
            expiry_s(wrong, 0)


def test_the_database_is_named_by_an_option_or_the_environment(environment: dict[str, str], tmp_path: Path) -> None:
    keys(environment, "create", "--database", str(tmp_path / "own.db"))
    assert (tmp_path / "own.db").exists()
    assert listed(environment) == []
    wrong = keys(environment, "list", "--database", "mysql://joe:hush@host/x", code=2)
    assert "hush" not in wrong


def test_nothing_has_been_used_yet(environment: dict[str, str]) -> None:
    assert "nothing has been used" in keys(environment, "usage")


@pytest.mark.slow
def test_a_server_with_keys_meters_logs_and_drains(world: World, environment: dict[str, str]) -> None:
    made = json.loads(keys(environment, "create", "--tenant", "acme", "--json"))
    arguments = ["--price-per-million-tokens", "1000", "--drain-s", "60", "--host", "0.0.0.0"]
    with served(world, environment, *arguments) as (url, process, log):
        body = {"inputs": "Hello", "parameters": {"adapter_id": "alpha", "max_new_tokens": 3, "ignore_eos_token": True}}
        headers = {"Authorization": f"Bearer {made['key']}"}
        assert httpx.post(f"{url}/generate", json=body).status_code == 401
        assert httpx.post(f"{url}/generate", json=body, headers=headers, timeout=60).status_code == 200
        assert httpx.get(f"{url}/metrics", headers=headers).status_code == 403
        wait_until(lambda: keys(environment, "usage", "--json"))
        usage = json.loads(keys(environment, "usage", "--json"))
        assert (usage["key_id"], usage["tenant"], usage["adapter"]) == (made["id"], "acme", "alpha")
        assert (usage["requests"], usage["generated_tokens"]) == (1, 3)
        assert usage["cost_usd"] == pytest.approx((usage["prompt_tokens"] + 3) / 1000)
        assert "alpha" in keys(environment, "usage", "--since", "2020-01-01", "--key", made["id"])

        long = {"inputs": "Hello", "parameters": {"max_new_tokens": 300, "ignore_eos_token": True}}
        with httpx.stream("POST", f"{url}/generate_stream", json=long, headers=headers, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            # The port stays open while a request runs, and says that it wants no more.
            wait_until(lambda: httpx.get(f"{url}/health/ready").status_code == 503)
            assert httpx.get(f"{url}/health/live").status_code == 200
            assert httpx.post(f"{url}/generate", json=body, headers=headers).status_code == 503
            assert '"generated_text":null' not in [line for line in lines if line][-1]
        assert process.wait(timeout=60) == 0
        (later,) = [json.loads(line) for line in keys(environment, "usage", "--json").splitlines() if '""' in line]
        assert (later["adapter"], later["generated_tokens"]) == ("", 300)
        entries = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        requests = [entry for entry in entries if entry["message"] == "request"]
        assert {entry.get("key_id") for entry in requests} == {None, made["id"]}
        assert made["key"] not in log.read_text()
        assert "Hello" not in log.read_text()


@pytest.mark.slow
def test_requests_that_outlast_the_drain_end_with_an_error_in_their_stream(
    world: World, environment: dict[str, str]
) -> None:
    with served(world, environment, "--drain-s", "0.2", "--log-format", "text") as (url, process, log):
        long = {"inputs": "Hello", "parameters": {"max_new_tokens": 450, "ignore_eos_token": True}}
        with httpx.stream("POST", f"{url}/generate_stream", json=long, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            last = [line for line in lines if line][-1]
        # A fast machine may finish all the same.
        assert "the server is stopping" in last or '"generated_text":null' not in last
        assert process.wait(timeout=60) == 0
        assert " INFO server.access: request method=POST route=/generate_stream status=200 " in log.read_text()
        assert "Traceback" not in log.read_text()


def test_no_server_is_public_without_keys_unless_it_is_said_twice(world: World, environment: dict[str, str]) -> None:
    for arguments in ([], ["--no-keys"], ["--allow-public"]):
        said = refused(world, environment, "--host", "0.0.0.0", *arguments)
        assert "there are no keys" in said
        assert "--no-keys --allow-public" in said


@pytest.mark.slow
def test_a_public_server_without_keys_warns_and_answers_to_addresses_alone(
    world: World, environment: dict[str, str]
) -> None:
    keys(environment, "create")
    with served(world, environment, "--host", "0.0.0.0", "--no-keys", "--allow-public") as (url, _, _):
        assert httpx.get(f"{url}/v1/models").status_code == 200
        assert httpx.get(f"{url}/v1/models", headers={"Host": "10.1.2.3"}).status_code == 200
        assert httpx.get(f"{url}/v1/models", headers={"Host": "evil.example"}).status_code == 403


def test_a_database_that_is_not_there_is_said_before_the_model_is_loaded(
    world: World, environment: dict[str, str], tmp_path: Path
) -> None:
    address = f"postgresql://joe:hush@/x?host={tmp_path}"
    command = [*ATOLL, "serve", "--port", "0", "--database", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, env=environment, check=False)
    assert done.returncode == 1
    assert "cannot be used" in done.stderr
    assert "hush" not in done.stderr
    assert "loading" not in done.stderr
    assert "Traceback" not in done.stderr
