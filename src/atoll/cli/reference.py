"""docs/cli.md, made from the commands themselves: what `--help` says and what the page says are one text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from typer.core import TyperGroup
from typer.main import get_command

from atoll.cli.grouped import SECTIONS

if TYPE_CHECKING:
    import typer
    from typer._click import Command, Context

WIDTH = 100
INTRODUCTION = """\
# The command line

`scripts/cli-docs` makes this page from the commands themselves; a test holds the two together.

Every command answers `--help`. Those that report something have `--json`: one JSON object, or one a line where there
are many or where a run goes on for long. Tables have rules and colours on a terminal only; a pipe gets plain columns,
and `NO_COLOR=1` takes the colours away. Results go to stdout; progress, notes and errors to stderr.

An error says what is wrong, where, why and how to mend it, and ends with one of these exit codes:

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | internal: a defect (`ATOLL_DEBUG=1` shows where), or a server that does not answer; `doctor`: a check failed |
| 2 | usage: a wrong option, name or key |
| 3 | config or data: a file does not say something valid, or the machine refused to read or write one |
| 4 | not found: a model, adapter or task |
| 5 | incompatible: each is valid alone, but they do not go together |
| 6 | over budget: to go on could cost more than `--max-usd` allows |
| 130 | interrupted by Ctrl-C |
| 141 | broken pipe: the reader of the output has gone |

Settings that hold for several commands come from the environment: `ATOLL_STORE` (the adapters), `ATOLL_CACHE` (base
models), `ATOLL_URL` and `ATOLL_KEY` (a running server), `ATOLL_DATABASE` (keys and usage), `HF_TOKEN`, `HF_ENDPOINT`
and `AWS_*` (hubs and S3).

`eval "$(atoll completion bash)"` in ~/.bashrc (zsh: ~/.zshrc) completes commands, options, adapters, tasks and fleet
files; `atoll completion fish > ~/.config/fish/completions/atoll.fish` does for fish.
"""


def reference(app: typer.Typer) -> str:
    """The whole page."""
    root = get_command(app)
    context = _context(root, "atoll", None)
    commands = list(walk(root, context))
    lines = [INTRODUCTION]
    placed = {name: heading for heading, names in SECTIONS.items() for name in names}
    for heading in (*SECTIONS, "Others"):
        below = [(path, text) for path, text in commands if placed.get(path.split()[1], "Others") == heading]
        if below:
            lines.append(f"## {heading}\n")
        for path, text in below:
            lines.append(f"### {path}\n\n```text\n{text}\n```\n")
    return "\n".join(lines)


def walk(command: Command, context: Context) -> Iterator[tuple[str, str]]:
    """(`atoll keys create`, its help) of every command below this one, groups without their own page left out."""
    if not isinstance(command, TyperGroup):
        yield context.command_path, context.get_help()
        return
    for name in command.list_commands(context):
        below = command.commands[name]
        if not below.hidden:
            yield from walk(below, _context(below, name, context))


def _context(command: Command, name: str, parent: Context | None) -> Context:
    return command.make_context(
        name, [], parent=parent, resilient_parsing=True, terminal_width=WIDTH, max_content_width=WIDTH
    )
