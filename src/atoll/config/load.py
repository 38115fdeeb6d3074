"""Reads fleet and task files; every error says file, line, column and how to mend it."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from atoll.config.base import ConfigModel
from atoll.config.explain import did_you_mean, explain, place_of
from atoll.config.fleet import AdapterEntry, FleetConfig
from atoll.config.ludwig import Translation, Untranslatable, is_ludwig, translate
from atoll.config.prices_file import PriceFile
from atoll.config.task import DatasetConfig, SourceConfig, TaskConfig
from atoll.config.yaml_tree import Node, Place, Problem, YamlError, parse_yaml
from atoll.errors import ConfigError

MAX_FILE_BYTES = 1024 * 1024
_MAX_PROBLEMS_SHOWN = 50
_MAX_MESSAGE_CHARS = 600

_Model = TypeVar("_Model", bound=ConfigModel)
_EMPTY_MENDS = {
    "FleetConfig": "a fleet begins with `adapters: {my-adapter: {task: glue_sst2}}`",
    "PriceFile": "a file of prices begins with `cpu:`, `gpu:` or `models:`",
    "TaskConfig": "a task needs `name`, `dataset`, `prompt`, `target_column` and `metrics`",
}


def load_fleet(path: str | Path) -> FleetConfig:
    """Read a fleet file, or a Ludwig file as one. Paths of tasks and of the base model come back absolute, `output`
    with its default filled in.

    Raises ConfigError.
    """
    path = Path(path)
    root, problems = _parse(_read_text(path), str(path), FleetConfig)
    if is_ludwig(root.value):
        return _ludwig_fleet(path, root, problems)
    config = _checked(FleetConfig, root, problems, str(path))
    return _placed(config, root, str(path), folder=path.absolute().parent, name=path.stem)


def check_fleet(values: Mapping[str, Any], *, name: str) -> FleetConfig:
    """A fleet from the keys of a fleet file; paths in them are taken from the current folder. Raises ConfigError."""
    root = Node(dict(values), Place(1, 1))
    try:
        config = FleetConfig.model_validate(root.value)
    except ValidationError as error:
        problems = explain(error, root, FleetConfig)
        raise _config_error(name, problems) from error
    return _placed(config, root, name, folder=Path.cwd(), name=name)


def _placed(config: FleetConfig, root: Node, where: str, *, folder: Path, name: str) -> FleetConfig:
    """The fleet with absolute paths and its output. Raises ConfigError for task files that are not there."""
    adapters = {adapter: _with_task_path(entry, folder) for adapter, entry in config.adapters.items()}
    problems = [
        Problem(
            place_of(root, ("adapters", adapter, "task")),
            f"no task file at {entry.task}",
            _mend_missing(Path(entry.task)),
        )
        for adapter, entry in adapters.items()
        if is_task_path(entry.task) and not Path(entry.task).is_file()
    ]
    if problems:
        raise _config_error(where, problems)
    output = config.output or str(Path("runs", name))
    placed = {"adapters": adapters, "base_model": _placed_base(config.base_model, folder), "output": output}
    return config.model_copy(update=placed)


def load_task(path: str | Path) -> TaskConfig:
    """Read a task file, or the task of a Ludwig file. Paths of its data come back absolute. Raises ConfigError."""
    path = Path(path)
    return load_task_text(_read_text(path), str(path), folder=path.absolute().parent)


def load_task_text(text: str, where: str, *, folder: Path | None = None) -> TaskConfig:
    """Read a task from YAML text; errors call it `where`, and paths in it are taken from `folder` if that is given.

    Raises ConfigError.
    """
    root, problems = _parse(text, where, TaskConfig)
    if is_ludwig(root.value):
        translation = _translate(root, problems, where, dataset=f"{Path(where).stem}.csv")
        config = TaskConfig.model_validate(translation.task)
    else:
        config = _checked(TaskConfig, root, problems, where)
    if folder is None:
        return config
    splits = {name: getattr(config.dataset, name) for name in DatasetConfig.model_fields}
    placed = {name: source and _with_data_path(source, folder) for name, source in splits.items()}
    return config.model_copy(update={"dataset": config.dataset.model_copy(update=placed)})


def load_prices(path: str | Path) -> PriceFile:
    """Read a file of prices. Raises ConfigError."""
    return load_prices_text(_read_text(Path(path)), str(path))


def load_prices_text(text: str, where: str) -> PriceFile:
    """Read prices from YAML text; errors call it `where`. Raises ConfigError."""
    return _validate(PriceFile, text, where)[0]


def is_task_path(ref: str) -> bool:
    """Whether a task reference is a file's path, rather than the name of a built-in task."""
    return "/" in ref or ref.startswith("~") or ref.endswith((".yaml", ".yml"))


def load_ludwig(
    path: str | Path, *, dataset: str | Path | None = None, columns: Sequence[str] | None = None
) -> Translation | None:
    """What a Ludwig file means here; None for a file that is none.

    dataset: the data file, by default the one beside the file with its name and `.csv`. columns: the data file's, where
    they are known. Raises ConfigError.
    """
    path = Path(path)
    root, problems = _parse(_read_text(path), str(path), FleetConfig)
    if not is_ludwig(root.value):
        return None
    return _translate(root, problems, str(path), dataset=str(dataset or f"{path.stem}.csv"), columns=columns)


def _ludwig_fleet(path: Path, root: Node, problems: list[Problem]) -> FleetConfig:
    """A fleet whose one task is the file itself."""
    translation = _translate(root, problems, str(path), dataset=f"{path.stem}.csv", task=str(path.absolute()))
    fleet = FleetConfig.model_validate(translation.fleet)
    base_model = _placed_base(fleet.base_model, path.absolute().parent)
    return fleet.model_copy(update={"base_model": base_model, "output": str(Path("runs", path.stem))})


def _translate(
    root: Node,
    problems: list[Problem],
    where: str,
    *,
    dataset: str,
    task: str = "task.yaml",
    columns: Sequence[str] | None = None,
) -> Translation:
    name = re.sub(r"[^a-z0-9._-]+", "-", Path(where).stem.lower()).strip("-._")[:64] or "adapter"
    if problems:
        raise _config_error(where, problems)
    try:
        return translate(root, name=name, dataset=dataset, task=task, columns=columns)
    except Untranslatable as error:
        raise _config_error(where, error.problems) from error


def _parse(text: str, where: str, model: type[ConfigModel]) -> tuple[Node, list[Problem]]:
    """The mapping that a file of `model` holds, and problems that did not end its reading. Raises ConfigError."""
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
    return root, problems


def _validate(model: type[_Model], text: str, where: str) -> tuple[_Model, Node]:
    """Validate `text` as `model`. Raises ConfigError with every problem found."""
    root, problems = _parse(text, where, model)
    return _checked(model, root, problems, where), root


def _checked(model: type[_Model], root: Node, problems: list[Problem], where: str) -> _Model:
    """Validate what a file holds as `model`. Raises ConfigError with every problem found."""
    try:
        config = model.model_validate(root.value)
    except ValidationError as error:
        raise _config_error(where, problems + explain(error, root, model)) from error
    if problems:
        raise _config_error(where, problems)
    return config


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


def _placed_base(base_model: str, folder: Path) -> str:
    is_path = base_model.startswith((".", "/", "~")) or base_model.endswith(".gguf")
    return _absolute(base_model, folder) if is_path else base_model


def _with_task_path(entry: AdapterEntry, folder: Path) -> AdapterEntry:
    if not is_task_path(entry.task):
        return entry
    return entry.model_copy(update={"task": _absolute(entry.task, folder)})


def _with_data_path(source: SourceConfig, folder: Path) -> SourceConfig:
    if source.path is None or re.match(r"[a-z][a-z0-9+.-]*://", source.path):
        return source
    return source.model_copy(update={"path": _absolute(source.path, folder)})
