"""`atoll completion`: what a shell needs to complete commands, options, adapters, tasks and fleet files.

Somebody types while this runs, so nothing heavy is imported and no adapter is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from typer._click import Command

VARIABLE = "_ATOLL_COMPLETE"
_MAX_FILES = 500
_HEAD_BYTES = 1 << 16


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Whose script.", show_default=False)],
) -> None:
    """Print the script that makes a shell complete commands, options, adapters, tasks and fleet files.

    For good: put the line `eval "$(atoll completion bash)"` into ~/.bashrc (zsh: ~/.zshrc), or write fish's script to
    ~/.config/fish/completions/atoll.fish.

    Example: eval "$(atoll completion bash)"
    """
    from typer._completion_shared import get_completion_script

    print(get_completion_script(prog_name="atoll", complete_var=VARIABLE, shell=shell))


def complete(command: Command) -> int:
    """Answer a shell that asks, by its environment, what could stand next. Returns an exit code."""
    from typer._completion_classes import completion_init
    from typer.completion import shell_complete

    completion_init()
    return shell_complete(command, {}, "atoll", VARIABLE, os.environ[VARIABLE])


def adapter_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """The names in the store that a command line means."""
    from atoll.adapters.names import default_store_root, stored_names

    given = ctx.params.get("store")
    return _begun(stored_names(Path(given) if given else default_store_root()), incomplete)


def task_names(incomplete: str) -> list[str]:
    """The tasks that ship with Atoll."""
    folder = Path(__file__).parents[1] / "tasks" / "definitions"
    return _begun(sorted(path.stem for path in folder.glob("*.yaml")), incomplete)


def fleet_files(incomplete: str) -> list[str]:
    """The YAML files that look like fleets in the folder that is being typed, and its folders."""
    typed = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    try:
        entries = sorted(typed.iterdir())[:_MAX_FILES]
    except OSError:
        return []
    found = []
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith("."):
            found.append(f"{entry}/")
        elif entry.suffix in (".yaml", ".yml") and _is_fleet(entry):
            found.append(str(entry))
    return _begun(found, incomplete)


def _begun(words: list[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


def _is_fleet(path: Path) -> bool:
    """Whether a file's beginning has the key that only fleets have."""
    try:
        with path.open("rb") as file:
            return b"adapters:" in file.read(_HEAD_BYTES)
    except OSError:
        return False
