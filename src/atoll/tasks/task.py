"""Finding tasks: those that ship with Atoll by their name, others by the path of their YAML file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from atoll.config.explain import did_you_mean
from atoll.config.load import is_task_path, load_task
from atoll.config.task import TaskConfig
from atoll.errors import TaskNotFound


def builtin_tasks() -> dict[str, Path]:
    """The definitions that ship with Atoll, by name."""
    folder = Path(str(resources.files("atoll.tasks") / "definitions"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_task(ref: str) -> TaskConfig:
    """The task of that built-in name or file path. Raises TaskNotFound, or ConfigError for a file that is not valid."""
    if is_task_path(ref):
        path = Path(ref).expanduser()
        if not path.is_file():
            raise TaskNotFound("there is no such task file", where=ref, mend="check the path")
        return load_task(path)
    builtin = builtin_tasks()
    if ref in builtin:
        return load_task(builtin[ref])
    guess = did_you_mean(ref, builtin)
    mend = f"did you mean {guess}?" if guess else "`atoll tasks ls` lists the built-in ones"
    raise TaskNotFound(f"there is no task named {ref!r}", mend=f"{mend}; a file is named by its path: ./{ref}.yaml")
