"""Commands in the documentation's `console` blocks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"(<!-- not run: (?P<reason>[^>]+) -->\n)?```console\n(?P<text>.*?)```", re.DOTALL)
_INDENTED = re.compile(r"^    (?:\$ )?(?P<line>(?:[A-Z_]+=\S+ )*atoll .*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """Commands of one block; `reason` says why a test cannot run them."""

    commands: tuple[str, ...]
    reason: str | None


def console_blocks(page: Path) -> list[Block]:
    """The ```console blocks of a page, in order; commands are the lines that begin with `$ `."""
    return [
        Block(tuple(line[2:] for line in match["text"].splitlines() if line.startswith("$ ")), match["reason"])
        for match in _BLOCK.finditer(page.read_text(encoding="utf-8"))
    ]


def atoll_commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `atoll` command of a page's code, those in indented blocks too."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in console_blocks(page) for line in block.commands]
    lines += [match["line"] for match in _INDENTED.finditer(text)]
    for line in lines:
        for command in re.split(r"\s(?:&&|;)\s|\s&$", line):
            words = shlex.split(command, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words and words[0] == "atoll":
                yield words[1:]
