"""Every `atoll` command in the documentation is one that the command line takes, and all code in it is run."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import typer.main

from atoll.cli.main import app
from atoll.cli.reference import walk
from support.console import atoll_commands, code_blocks, commands_of
from support.newcomer import newcomer

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "results").glob("*.md")])
}
ROOT_COMMAND = typer.main.get_command(app)
EXAMPLE = re.compile(r"Examples?:\s+(.+?)(?:\n\s*\n|\Z)", re.DOTALL)
WITH_CODE = [name for name, path in PAGES.items() if any(block.reason is None for block in code_blocks(path))]


@pytest.mark.parametrize("page", PAGES)
def test_documented_commands_exist(page: str) -> None:
    for words in atoll_commands(PAGES[page]):
        check_words(ROOT_COMMAND, words, " ".join(["atoll", *words]))


def test_examples_in_the_help_exist() -> None:
    helps = dict(walk(ROOT_COMMAND, ROOT_COMMAND.make_context("atoll", [], resilient_parsing=True)))
    examples = [" ".join(found.split()) for text in helps.values() for found in EXAMPLE.findall(text)]
    assert len(examples) > 20
    for example in examples:
        for words in commands_of(example):
            check_words(ROOT_COMMAND, words, example)


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


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE)
def test_what_a_page_says_works_step_by_step(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    blocks = [block for block in code_blocks(PAGES[page]) if block.reason is None]
    data = request.getfixturevalue("loraland") if any("DATA" in block.code for block in blocks) else None
    with newcomer(tmp_path, data) as reader:
        done = reader.follows(blocks)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
