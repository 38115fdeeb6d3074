"""Code in the documentation: `console` and `python` blocks, and the `atoll` commands among them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```(?P<language>console|python)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One block of code; `reason` says why a test cannot run it.

    code: of a console what was typed, behind `$ ` or as its continuation behind `> `; else the whole text.
    """

    language: str
    code: str
    reason: str | None


def code_blocks(page: Path) -> list[Block]:
    """The console and python blocks of a page, in order."""
    return [
        Block(
            match["language"],
            _typed(match["text"]) if match["language"] == "console" else match["text"],
            match["reason"],
        )
        for match in _BLOCK.finditer(page.read_text(encoding="utf-8"))
    ]


def _typed(text: str) -> str:
    return "".join(f"{line[2:]}\n" for line in text.splitlines() if line.startswith(("$ ", "> ")))


def atoll_commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `atoll` command of a page's consoles."""
    for block in code_blocks(page):
        if block.language == "console":
            yield from commands_of(block.code)


def commands_of(shell: str) -> Iterator[list[str]]:
    """The arguments of every `atoll` command of a shell script."""
    for command in re.findall(r"\batoll\s[^\n)]*", shell.replace("\\\n", " ")):
        yield shlex.split(command, comments=True)[1:]
