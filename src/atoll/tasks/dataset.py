"""The examples of a task's splits: read, checked, turned into text, shuffled by a seed and cut to a limit."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.config.explain import did_you_mean
from atoll.config.task import SourceConfig, TaskConfig
from atoll.errors import DataError
from atoll.tasks.generated.partition import Split
from atoll.tasks.metrics import find_metric
from atoll.tasks.reading import Record, as_text, has_local_files, hub_dataset, read_file, read_source

__all__ = [
    "SPLITS",
    "Example",
    "Split",
    "data_digest",
    "has_split",
    "is_at_hand",
    "load_rows",
    "load_split",
    "metric_columns",
    "split_hub_dataset",
]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_SUFFIXES = (".jsonl.gz", ".jsonl", ".csv", ".parquet")
# A validation split that is set aside from train: this share of its inputs, but no more than that many.
_VALIDATION_SHARE = 0.1
_MAX_VALIDATION_INPUTS = 500


@dataclass(frozen=True)
class Example:
    """A row of a task, its input columns and its target as text.

    example_id: a hash of the row, the same on every machine; rows that are equal have the same one. columns: what the
    task's metrics read beside the target, where the rows were loaded for scoring.
    """

    example_id: str
    row: dict[str, str]
    columns: dict[str, str] = field(default_factory=dict)


def load_split(
    task: TaskConfig,
    split: Split,
    *,
    data_root: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    for_scoring: bool = False,
) -> list[Example]:
    """The examples of a split, shuffled by `seed`, at most `limit` of them; a smaller limit keeps the first ones.

    data_root: a folder whose <task>/<split>.(jsonl.gz|jsonl|csv|parquet), where there is one, replaces the task's
    own source. A task without a validation split has one set aside from train: a tenth of its inputs and at most 500,
    whatever the seed; equal inputs stay together. for_scoring: also read the columns that the task's metrics need.
    Raises DataError, which names file, row, column and what to do, and ConfigError for a metric that does not exist.
    """
    columns = metric_columns(task) if for_scoring else ()
    if split != "test" and _is_set_aside(task, data_root):
        train, validation = _divide(task, _load(task, "train", data_root, columns))
        examples = train if split == "train" else validation
    else:
        examples = _load(task, split, data_root, columns)
    random.Random(seed).shuffle(examples)
    return examples[:limit]


def load_rows(
    task: TaskConfig, split: Split, *, data_root: Path | None = None, for_scoring: bool = False
) -> list[Example]:
    """All rows of a split in the order of its source, those that `load_split` sets aside for validation included.

    Raises DataError and ConfigError as `load_split` does.
    """
    return _load(task, split, data_root, metric_columns(task) if for_scoring else ())


def metric_columns(task: TaskConfig) -> tuple[str, ...]:
    """The columns that the task's metrics read beside the target. Raises ConfigError for an unknown metric."""
    return tuple(dict.fromkeys(column for name in task.metrics for column in find_metric(name).columns))


def has_split(task: TaskConfig, split: Split, *, data_root: Path | None = None) -> bool:
    """Whether there is a source for that split: the task's own or the data root's."""
    return getattr(task.dataset, split) is not None or _replacement(task, split, data_root) is not None


def is_at_hand(task: TaskConfig, split: Split, *, data_root: Path | None = None) -> bool:
    """Whether the rows of that split can be had without the network."""
    if split == "validation" and _is_set_aside(task, data_root):
        split = "train"
    source: SourceConfig | None = getattr(task.dataset, split)
    if _replacement(task, split, data_root) is not None:
        return True
    return source is not None and (source.path is None or has_local_files(source.path))


def split_hub_dataset(task: TaskConfig, split: Split, *, data_root: Path | None = None) -> str:
    """The hub's data set that a split is read from: `owner/name` or `owner/name@revision`, "" for other sources."""
    source: SourceConfig | None = getattr(task.dataset, split)
    if source is None or source.path is None or _replacement(task, split, data_root) is not None:
        return ""
    return hub_dataset(source.path)


def data_digest(examples: Sequence[Example]) -> str:
    """A sha256 over the rows in their order, with the columns for scoring where they were loaded."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(_canonical(example.row))
        digest.update(_canonical(example.columns) if example.columns else b"")
    return f"sha256:{digest.hexdigest()}"


def _is_set_aside(task: TaskConfig, data_root: Path | None) -> bool:
    """Whether the validation split comes out of train: a train file of the data root goes with its own validation."""
    if _replacement(task, "validation", data_root) is not None:
        return False
    return task.dataset.validation is None or _replacement(task, "train", data_root) is not None


def _replacement(task: TaskConfig, split: Split, data_root: Path | None) -> Path | None:
    if data_root is None:
        return None
    paths = [data_root / task.name / f"{split}{suffix}" for suffix in _SUFFIXES]
    return next((path for path in paths if path.is_file()), None)


def _divide(task: TaskConfig, examples: list[Example]) -> tuple[list[Example], list[Example]]:
    """Train and validation. Inputs are ordered by their hash, so that the same ones go on every machine."""

    def key(example: Example) -> bytes:
        return _hash({column: example.row[column] for column in task.input_columns})

    keys = sorted({key(example) for example in examples})
    num_aside = min(math.ceil(len(keys) * _VALIDATION_SHARE), _MAX_VALIDATION_INPUTS, len(keys) - 1)
    aside = set(keys[:num_aside])
    train = [example for example in examples if key(example) not in aside]
    return train, [example for example in examples if key(example) in aside]


def _load(task: TaskConfig, split: Split, data_root: Path | None, columns: Sequence[str]) -> list[Example]:
    if data_root is not None and not data_root.is_dir():
        raise DataError("there is no such folder", where=str(data_root), mend="check --data-root")
    records, where = _records(task, split, data_root)
    if not records:
        raise DataError(f"the {split} split of {task.name} is empty", where=where, mend="give it at least one row")
    examples = [_example(task, record, columns) for record in records]
    _check_labels(task, records, examples)
    return examples


def _records(task: TaskConfig, split: Split, data_root: Path | None) -> tuple[list[Record], str]:
    """The rows of a split and a name for their source."""
    path = _replacement(task, split, data_root)
    if path is not None:
        return list(read_file(path)), str(path)
    source: SourceConfig | None = getattr(task.dataset, split)
    if source is None:
        place = f"dataset.{split}"
        mend = f"name its file under `{place}`"
        raise DataError(f"the task {task.name} has no {split} split", where=place, mend=mend)
    if source.generated is not None:
        module = importlib.import_module(f"atoll.tasks.generated.{source.generated}")
        where = f"generated {source.generated}"
        return [Record(row, f"{where}, row {number}") for number, row in enumerate(module.rows(split), 1)], where
    return read_source(source), str(source.path)


def _example(task: TaskConfig, record: Record, columns: Sequence[str]) -> Example:
    row = {column: _field(record, column) for column in (*task.input_columns, task.target_column)}
    return Example(_hash(row).hex()[:16], row, {column: _field(record, column) for column in columns})


def _field(record: Record, column: str) -> str:
    where = f"{record.where}, column `{column}`"
    if column not in record.values:
        guess = did_you_mean(column, map(str, record.values))
        columns = ", ".join(f"`{name}`" for name in record.values)
        mend = f"did you mean `{guess}`? " if guess else ""
        mend += f"the columns here are {columns}; name one of them in the task, or rename it by `sql`"
        raise DataError(f"the column `{column}` is missing", where=where, mend=mend)
    value: Any = record.values[column]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        mend = f"fill it in, remove the row, or set `sql: SELECT * FROM data WHERE {column} IS NOT NULL`"
        raise DataError(f"the value of `{column}` is missing (null)", where=where, mend=mend)
    try:
        text = as_text(value)
        text.encode("utf-8")
    except UnicodeError as error:
        mend = "repair the text: it was cut, or decoded with the wrong encoding"
        raise DataError("the value is not valid text", where=where, why=str(error), mend=mend) from error
    return text


def _check_labels(task: TaskConfig, records: Sequence[Record], examples: Sequence[Example]) -> None:
    if task.labels is None:
        return
    column = task.target_column
    wrong = [
        (record.where, example.row[column])
        for record, example in zip(records, examples, strict=True)
        if example.row[column] not in task.labels
    ]
    if not wrong:
        return
    where, value = wrong[0]
    others = f" ({len(wrong)} rows have a value that is none of them)" if len(wrong) > 1 else ""
    guess = did_you_mean(value, task.labels)
    mend = f"write {guess!r}, " if guess else "correct the row, "
    raise DataError(
        f"{value[:80]!r} is none of the labels" + others,
        where=f"{where}, column `{column}`",
        why="the labels are " + ", ".join(map(repr, task.labels)),
        mend=mend + "or add the value to the task's `labels`",
    )


def _hash(row: dict[str, str]) -> bytes:
    return hashlib.sha256(_canonical(row)).digest()


def _canonical(row: dict[str, str]) -> bytes:
    return json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n"
