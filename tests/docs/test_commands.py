"""Every `atoll` command in the documentation is one that the command line takes; those of the first pages are run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer.main
from ruamel.yaml import YAML

from atoll.cli.main import app
from support.console import atoll_commands, console_blocks
from support.tiny import save_tiny_base

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_documented_commands_exist(page: Path) -> None:
    for words in atoll_commands(page):
        check_words(typer.main.get_command(app), words, " ".join(["atoll", *words]))


def check_words(command: click.Command, words: list[str], shown: str) -> None:
    """Fail where a verb or an option does not exist, or where a value cannot be one. Files need not be there."""
    while isinstance(command, click.Group):
        assert words, shown
        verb, *words = words
        found = command.get_command(click.Context(command), verb)
        assert found is not None, f"{shown}: no command {verb!r}"
        command = found
    try:
        command.make_context(command.name, list(words))
    except click.exceptions.Exit:
        return  # --help
    except click.UsageError as error:
        if "does not exist" not in error.format_message():
            pytest.fail(f"{shown}: {error.format_message()}")


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with the examples as in a clone, but over a tiny base and with few rows."""
    save_tiny_base(tmp_path / "base")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    yaml = YAML()
    for path in (tmp_path / "examples" / "demo.yaml", tmp_path / "examples" / "tickets" / "tickets.yaml"):
        fleet = yaml.load(path)
        fleet["base_model"] = str(tmp_path / "base")
        fleet["trainer"] = {"epochs": 1}
        fleet["data"] = {"limit": 6, "validation_limit": 2, "max_length": 256}
        yaml.dump(fleet, path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", ["start", "own-data"])
def test_the_commands_of_a_page_work_one_after_the_other(page: str, workplace: Path) -> None:
    blocks = console_blocks(ROOT / "docs" / f"{page}.md")
    commands = [command for block in blocks if block.reason is None for command in block.commands]
    assert commands
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ATOLL_STORE": str(workplace / "store"),
    }
    for command in commands:
        words = ["3" if word == "100" else word for word in shlex.split(command)]  # --limit: few answers are enough
        done = subprocess.run(
            words, cwd=workplace, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
