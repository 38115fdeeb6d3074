"""A first fleet file and its task file: what stands in them, checked against the data before anything is written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atoll.config.ludwig import Translation
    from atoll.config.yaml_text import Value

FLEET_NAME = "fleet.yaml"
_MANY_ROWS = 6_000
_FEW_ROWS = 1_000
_WANTED_EXAMPLES = 2_400  # what a first adapter should see in all, a small file several times


@dataclass(frozen=True)
class Plan:
    """What is to be written, and what the user should know of it. checks_data: whether the data file is there."""

    fleet_path: Path
    fleet_text: str
    task_path: Path
    task_text: str
    notes: tuple[str, ...]
    checks_data: bool


def adapter_name(path: Path) -> str:
    """A name for the adapter that a file is about."""
    stem = path.name.removesuffix(".gz").partition(".")[0]
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:64] or "adapter"


def plan_from_data(
    data: Path,
    folder: Path,
    *,
    base_model: str,
    target: str | None,
    inputs: Sequence[str],
    ask_target: Callable[[Sequence[str], str], str] | None,
) -> Plan:
    """A fleet of one adapter for a data file. Raises DataError or UsageError as `guess_task` does."""
    from atoll.config.yaml_text import to_yaml
    from atoll.tasks.guess import guess_task

    name = adapter_name(data)
    guess = guess_task(data, name, source=path_from(data, folder), target=target, inputs=inputs, ask_target=ask_target)
    task_path = folder / _task_file(name)
    fleet, comments = _first_fleet(name, task_path.name, base_model, guess.num_rows)
    if (output := run_folder(folder)) is not None:
        fleet["output"] = output
        comments["output"] = "Checkpoints, events and reports, below the folder where a command is given."
    names = {"target_column": "answer", "input_columns": "reads", "labels": "labels", "metrics": "scored by"}
    notes = tuple(f"{word}: {_listed(guess.task[key])}" for key, word in names.items() if key in guess.task)
    return Plan(
        folder / FLEET_NAME,
        _head(f"A first fleet for {data.name}, made by `atoll init`.") + to_yaml(fleet, comments),
        task_path,
        _head(f"A first guess at {data.name}: read it, and change what is not so.")
        + to_yaml(guess.task, guess.reasons),
        notes,
        checks_data=True,
    )


def plan_from_ludwig(source: Path, folder: Path, dataset: Path | None, *, output: str | None = None) -> Plan:
    """The fleet that a Ludwig file means. output: of the fleet. Raises ConfigError, also for a file that is none."""
    from itertools import islice

    from atoll.config.load import load_ludwig
    from atoll.config.yaml_text import to_yaml
    from atoll.errors import ConfigError
    from atoll.tasks.reading import read_file

    columns: list[str] | None = None
    if dataset is not None:
        columns = [str(column) for record in islice(read_file(dataset), 1) for column in record.values]
    data = dataset or source.with_suffix(".csv")
    translation = load_ludwig(source, dataset=path_from(data, folder), columns=columns)
    if translation is None:
        mend = "it begins with `model_type: llm`; a fleet file needs no translation"
        raise ConfigError("this is no Ludwig file", where=str(source), mend=mend)
    name = next(iter(_adapters(translation)))
    task_path = folder / _task_file(name, source.name)
    fleet = translation.fleet | {"adapters": {name: {"task": f"./{task_path.name}"}}}
    if output is not None:
        fleet["output"] = output
    title = f"Translated from Ludwig's {source.name} by `atoll init`."
    notes = tuple(f"{note}." for note in translation.notes)
    return Plan(
        folder / FLEET_NAME,
        _head(title, *notes) + to_yaml(fleet, _ludwig_comments(translation)),
        task_path,
        _head(title) + to_yaml(translation.task),
        notes,
        checks_data=data.is_file(),
    )


def run_folder(folder: Path) -> str | None:
    """Where the runs of a fleet in `folder` go: apart from those of other folders, whose fleets have the same name.

    None in the current folder, where a fleet's own name is enough.
    """
    path = folder.resolve()
    return None if path == Path.cwd() else f"runs/{path.name}"


def write_plan(plan: Plan, *, force: bool) -> None:
    """Check both files and the data, then write. Raises UsageError for files that are there already."""
    from atoll.config.fleet import FleetConfig
    from atoll.config.load import load_task_text
    from atoll.config.yaml_tree import parse_yaml
    from atoll.errors import UsageError
    from atoll.files import write_atomic
    from atoll.tasks.dataset import SPLITS, has_split, load_split

    for path in (plan.fleet_path, plan.task_path):
        if path.exists() and not force:
            mend = "add --force to write over it, or --output DIR for another folder"
            raise UsageError("there is such a file already", where=str(path), mend=mend)
    # A path through `..` leads nowhere from a folder that is not there.
    plan.task_path.parent.mkdir(parents=True, exist_ok=True)
    task = load_task_text(plan.task_text, str(plan.task_path), folder=plan.task_path.absolute().parent)
    root, _ = parse_yaml(plan.fleet_text)
    FleetConfig.model_validate(root.value if root else {})
    if plan.checks_data:
        for split in SPLITS:
            if has_split(task, split):
                load_split(task, split)
    write_atomic(plan.task_path, plan.task_text)
    write_atomic(plan.fleet_path, plan.fleet_text)


def path_from(path: Path, folder: Path) -> str:
    """A path as a file in `folder` should write it: relative where it lies below the folder or beside it."""
    relative = os.path.relpath(path.absolute(), folder.absolute())
    return str(path.absolute()) if relative.startswith(os.path.join("..", "..")) else Path(relative).as_posix()  # noqa: PTH118


def _task_file(name: str, *taken: str) -> str:
    return f"{name}.yaml" if f"{name}.yaml" not in (FLEET_NAME, *taken) else f"{name}-task.yaml"


def _first_fleet(name: str, task_file: str, base_model: str, num_rows: int) -> tuple[dict[str, Value], dict[str, str]]:
    trainer: dict[str, Value] = {"epochs": min(10, max(1, round(_WANTED_EXAMPLES / num_rows)))}
    comments = {
        "base_model": "A hub id, a folder or a .gguf file. This one is small enough for a laptop.",
        "adapters": "More tasks, more lines: they are tuned together and served together.",
        "trainer.epochs": "How often each example is seen; the adapter of the best validation is kept.",
    }
    if num_rows < _FEW_ROWS:
        trainer["effective_batch_size"] = 8
        comments["trainer.effective_batch_size"] = "Few examples: smaller steps, and so more of them."
    fleet: dict[str, Value] = {"base_model": base_model, "adapters": {name: {"task": f"./{task_file}"}}}
    fleet["trainer"] = trainer
    if num_rows > _MANY_ROWS:
        fleet["data"] = {"limit": 5_000}
        comments["data.limit"] = "Enough for a first adapter; remove it to learn from all rows."
    return fleet, comments


def _ludwig_comments(translation: Translation) -> dict[str, str]:
    trainer = translation.fleet["trainer"]
    comments = {"trainer.max_grad_norm": "Ludwig's `clipglobalnorm`, whose default is 0.5."}
    if isinstance(trainer, dict) and "max_steps" in trainer:
        comments["trainer.epochs"] = "As many as there are steps, so that the steps decide, as in Ludwig."
        comments["trainer.max_steps"] = "Optimiser steps; Ludwig's `train_steps` are micro-batches."
    return comments


def _listed(value: Value) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _adapters(translation: Translation) -> Mapping[str, Value]:
    adapters = translation.fleet["adapters"]
    assert isinstance(adapters, dict)  # `translate` makes it so
    return adapters


def _head(*paragraphs: str) -> str:
    from atoll.config.yaml_text import comment_lines

    return "".join(f"{line}\n" for paragraph in paragraphs for line in comment_lines(paragraph))
