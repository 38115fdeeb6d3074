"""What holds for every command: help with an example, JSON where it reports, and one clear message for any argument."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from atoll.cli.ending import run_to_its_end
from atoll.cli.grouped import SECTIONS
from atoll.cli.main import app
from atoll.cli.reference import reference, walk
from atoll.errors import AdapterNotFound, ConfigError, Incompatible

ROOT_COMMAND = get_command(app)
HELP = dict(walk(ROOT_COMMAND, ROOT_COMMAND.make_context("atoll", [], resilient_parsing=True)))
REPORTING = (
    "check,cost,doctor,export,import,keys create,keys list,keys usage,"
    "ls,ps,pull,push,rm,run,show,tasks ls,tasks show,tune"
)
HOSTILE = {
    "empty": "",
    "long": "x" * 5000,
    "unicode": "日本\u202e🙂",
    "escape": "a\x1b[2J\x07",
    "nul": "a\0b",
    "upwards": "../../../../etc/passwd",
    "surrogate": "a\udcffb",
    "option": "--no-such-option",
    "template": "{x!r}%s$(id)",
}
MAIN = [sys.executable, "-c", "from atoll.cli.main import main; main()"]


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    for name in ("ATOLL_DEBUG", "ATOLL_URL", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str) -> int:
    return run_to_its_end(app, arguments)


@pytest.mark.parametrize("command", HELP)
def test_every_command_has_help_with_an_example(command: str) -> None:
    assert re.search(rf"Examples?:\s.*{command.replace(' ', chr(92) + 's+')}", HELP[command], re.DOTALL), HELP[command]


def test_what_reports_can_do_so_in_json() -> None:
    assert [name for name in REPORTING.split(",") if "--json" not in HELP[f"atoll {name}"]] == []


def test_every_command_has_its_place_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    placed = [name for names in SECTIONS.values() for name in names]
    assert set(ROOT_COMMAND.commands) <= set(placed)  # type: ignore[attr-defined]
    assert "Others:" not in shown
    order = [shown.index(f"\n  {name} ") for name in placed if name in ROOT_COMMAND.commands]  # type: ignore[attr-defined]
    assert order == sorted(order)


def test_options_that_mean_the_same_are_called_the_same() -> None:
    helps = "\n".join(HELP.values())
    assert not re.search(r"--(base|adapter-store|data|data-folder|as-json)\s", helps)


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("command", HELP)
def test_any_argument_is_answered_with_one_message(
    command: str, hostile: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    text, words = HOSTILE[hostile], command.split()[1:]
    command_type = ROOT_COMMAND
    for word in words:
        command_type = command_type.commands[word]  # type: ignore[attr-defined]
    required = [parameter for parameter in command_type.params if parameter.required]
    arguments = [text for parameter in required if parameter.param_type_name == "argument"] or [text]
    for parameter in required:
        if parameter.param_type_name == "option":
            arguments += [parameter.opts[0], text]
    try:
        code = run(*words, *arguments)
    except SystemExit as exit:
        pytest.fail(f"left by {exit!r}")
    printed = capsys.readouterr()
    assert code in (1, 2, 3, 4, 5), printed.err
    assert "Traceback" not in printed.err
    assert "defect of Atoll" not in printed.err
    assert "\x1b" not in printed.out + printed.err
    assert len(printed.err.splitlines()) < 40


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tun"], "Did you mean 'tune'"),
        (["ls", "--stor", "x"], "did you mean --store?"),
        (["tasks", "show", "glue_sst"], "did you mean"),
        (["ls", "--json", "extra"], "see `atoll ls --help`"),
    ],
)
def test_misspelt_words_get_a_hint(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) in (2, 4)
    assert told in capsys.readouterr().err


def failing(error: BaseException) -> typer.Typer:
    own = typer.Typer()

    @own.command()
    def fail() -> None:
        raise error

    @own.command()
    def other() -> None: ...

    return own


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ConfigError("bad file"), 3, "error: bad file"),
        (AdapterNotFound("no adapter"), 4, "error: no adapter"),
        (Incompatible("no match"), 5, "error: no match"),
        (OSError(28, "No space left on device", "/disk/x"), 3, "/disk/x: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (typer.Abort(), 130, "interrupted"),
        (typer.Exit(7), 7, ""),
        (BrokenPipeError(), 141, ""),
        (LookupError("of ours"), 1, "LookupError: of ours\n  why:  this is a defect of Atoll"),
    ],
)
def test_each_end_has_its_exit_code(
    error: BaseException, code: int, told: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        monkeypatch.setattr("atoll.cli.ending._close_stdout", lambda: 141)
        assert run_to_its_end(failing(error), ["fail"]) == code
    finally:
        signal.signal(signal.SIGINT, handler)
    printed = capfd.readouterr().err
    assert told in printed
    assert "Traceback" not in printed


def test_a_traceback_is_shown_to_those_who_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_DEBUG", "1")
    with pytest.raises(LookupError):
        run_to_its_end(failing(LookupError("of ours")), ["fail"])


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    with subprocess.Popen([*MAIN, "schema", "fleet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 141


WORKS_FOREVER = """
import sys, time, typer
from atoll.cli.ending import run_to_its_end
app = typer.Typer()
@app.command()
def work() -> None:
    print("working", flush=True)
    while True:
        time.sleep(0.05)
sys.exit(run_to_its_end(app, []))
"""


def test_ctrl_c_prints_one_line() -> None:
    command = [sys.executable, "-c", WORKS_FOREVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "working\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == "interrupted\n"


def test_the_page_of_the_command_line_is_what_the_commands_say() -> None:
    page = Path(__file__).parents[2] / "docs" / "cli.md"
    assert page.read_text(encoding="utf-8") == reference(app), "run scripts/cli-docs"


def test_ls_and_tasks_are_plain_where_a_program_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tasks", "ls") == 0
    assert capsys.readouterr().out.isascii()
    assert run("tasks", "ls", "--json") == 0
    assert {"name", "metrics"} <= json.loads(capsys.readouterr().out.splitlines()[0]).keys()
