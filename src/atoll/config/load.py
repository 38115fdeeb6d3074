"""Reads fleet and task files; every error says file, line, column and how to mend it."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from atoll.config.base import ConfigModel
from atoll.config.explain import did_you_mean, explain, place_of
from atoll.config.fleet import AdapterEntry, FleetConfig
from atoll.config.task import DatasetConfig, SourceConfig, TaskConfig
from atoll.config.yaml_tree import Node, Place, Problem, YamlError, parse_yaml
from atoll.errors import ConfigError

MAX_FILE_BYTES = 1024 * 1024
_MAX_PROBLEMS_SHOWN = 50
_MAX_MESSAGE_CHARS = 600

_Model = TypeVar("_Model", bound=ConfigModel)
_EMPTY_MENDS = {
    "FleetConfig": "a fleet begins with `adapters: {my-adapter: {task: glue_sst2}}`",
    "TaskConfig": "a task needs `name`, `dataset`, `prompt`, `target_column` and `metrics`",
}


def load_fleet(path: str | Path) -> FleetConfig:
    """Read a fleet file. Paths of tasks and of the base model come back absolute, `output` with its default filled in.

    Raises ConfigError.
    """
    path = Path(path)
    config, root = _validate(FleetConfig, _read_text(path), str(path))
    folder = path.absolute().parent
    adapters = {name: _with_task_path(entry, folder) for name, entry in config.adapters.items()}
    problems = [
        Problem(
            place_of(root, ("adapters", name, "task")), f"no task file at {entry.task}", _mend_missing(Path(entry.task))
        )
        for name, entry in adapters.items()
        if is_task_path(entry.task) and not Path(entry.task).is_file()
    ]
    if problems:
        raise _config_error(str(path), problems)
    base_model = config.base_model
    if base_model.startswith((".", "/", "~")) or base_model.endswith(".gguf"):
        base_model = _absolute(base_model, folder)
    output = config.output or str(Path("runs", path.stem))
    return config.model_copy(update={"adapters": adapters, "base_model": base_model, "output": output})


def load_task(path: str | Path) -> TaskConfig:
    """Read a task file. Paths of its data come back absolute. Raises ConfigError."""
    path = Path(path)
    return load_task_text(_read_text(path), str(path), folder=path.absolute().parent)


def load_task_text(text: str, where: str, *, folder: Path | None = None) -> TaskConfig:
    """Read a task from YAML text; errors call it `where`, and paths in it are taken from `folder` if that is given.

    Raises ConfigError.
    """
    config, _ = _validate(TaskConfig, text, where)
    if folder is None:
        return config
    splits = {name: getattr(config.dataset, name) for name in DatasetConfig.model_fields}
    placed = {name: source and _with_data_path(source, folder) for name, source in splits.items()}
    return config.model_copy(update={"dataset": config.dataset.model_copy(update=placed)})


def is_task_path(ref: str) -> bool:
    """Whether a task reference is a file's path, rather than the name of a built-in task."""
    return "/" in ref or ref.startswith("~") or ref.endswith((".yaml", ".yml"))


def _validate(model: type[_Model], text: str, where: str) -> tuple[_Model, Node]:
    """Validate `text` as `model`. Raises ConfigError with every problem found."""
    try:
        root, problems = parse_yaml(text)
    except YamlError as error:
        raise _config_error(where, [error.problem]) from error
    mend = _EMPTY_MENDS[model.__name__]
    if root is None or root.source == "":
        raise ConfigError("the file is empty", where=f"{where}:1:1", mend=mend)
    if not isinstance(root.value, dict):
        kind = "a list" if isinstance(root.value, list) else "a single value"
        raise _config_error(where, [Problem(root.place, f"the file must hold a mapping of keys, not {kind}", mend)])
    try:
        config = model.model_validate(root.value)
    except ValidationError as error:
        raise _config_error(where, problems + explain(error, root, model)) from error
    if problems:
        raise _config_error(where, problems)
    return config, root


def _config_error(where: str, problems: list[Problem]) -> ConfigError:
    """One error for all problems, in the order of the file."""
    errors = [
        ConfigError(_printable(what), where=f"{where}:{place.line}:{place.column}", mend=_printable(mend))
        for place, what, mend in sorted(problems)
    ]
    if len(errors) == 1:
        return errors[0]
    shown = [str(error) for error in errors[:_MAX_PROBLEMS_SHOWN]]
    if len(errors) > len(shown):
        shown.append(f"... and {len(errors) - len(shown)} more")
    lines = "\n".join(shown).replace("\n", "\n  ")
    return ConfigError(f"{len(errors)} problems\n  {lines}", where=where)


def _printable(text: str) -> str:
    """`text` fit for a terminal: control characters escaped, and not endless, whatever the file had in it."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[:_MAX_MESSAGE_CHARS])
    return text + "..." * (len(text) >= _MAX_MESSAGE_CHARS)


def _read_text(path: Path) -> str:
    """A file's text. Raises ConfigError if it is missing, too big, or not UTF-8."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError("there is no such file", where=str(path), mend=_mend_missing(path)) from None
    except IsADirectoryError:
        raise ConfigError("this is a folder", where=str(path), mend="name a YAML file in it") from None
    except (OSError, ValueError) as error:
        why = str(error)
        raise ConfigError("the file cannot be read", where=str(path), why=why, mend="check the path") from error
    if len(data) > MAX_FILE_BYTES:
        mend = "keep data in files of their own, and name them in the YAML"
        raise ConfigError("the file is larger than 1 MiB", where=str(path), mend=mend)
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line_start = data.rfind(b"\n", 0, error.start) + 1
        column = len(data[line_start : error.start].decode("utf-8")) + 1
        place = Place(data.count(b"\n", 0, error.start) + 1, column)
        what = f"the byte 0x{data[error.start]:02X} is not UTF-8 text"
        raise _config_error(str(path), [Problem(place, what, "save the file in UTF-8")]) from None


def _mend_missing(path: Path) -> str:
    """A hint at a file of a similar name beside `path`."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    except (OSError, ValueError):
        return f"check the path: the folder {path.parent} cannot be read"
    guess = did_you_mean(path.name, names)
    return f"did you mean {path.with_name(guess)}?" if guess else "check the path"


def _absolute(path: str, folder: Path) -> str:
    # os.path leaves `~someone` alone where pathlib raises.
    return str(folder / os.path.expanduser(path))  # noqa: PTH111


def _with_task_path(entry: AdapterEntry, folder: Path) -> AdapterEntry:
    if not is_task_path(entry.task):
        return entry
    return entry.model_copy(update={"task": _absolute(entry.task, folder)})


def _with_data_path(source: SourceConfig, folder: Path) -> SourceConfig:
    if source.path is None or re.match(r"[a-z][a-z0-9+.-]*://", source.path):
        return source
    return source.model_copy(update={"path": _absolute(source.path, folder)})
