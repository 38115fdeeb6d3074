"""From a file of rows to a first task: which column is the answer, which ones are read, and how answers are scored."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from atoll.config.explain import did_you_mean
from atoll.config.yaml_text import Value
from atoll.errors import DataError, UsageError
from atoll.tasks.parts import as_text
from atoll.tasks.reading import read_file

MAX_ROWS = 50_000
MIN_ROWS = 10
_MAX_LABELS = 50
_MAX_LABEL_CHARS = 60
_MAX_LABELS_SHOWN = 20
_MIN_ROWS_PER_LABEL = 3
_MAX_INPUTS = 12
_MAX_NEW_TOKENS = 1024
# English has about four characters a token, code and other languages fewer; answers must not be cut short.
_CHARS_PER_TOKEN = 2.5
# What people call the column with the answer; the first that a file has counts.
_TARGET_NAMES = (
    "label", "labels", "target", "answer", "output", "completion", "response", "category", "class", "intent", "queue",
    "team", "sentiment", "topic", "summary", "translation", "sql", "reference", "gold", "expected", "result", "y",
)  # fmt: skip
_ID = re.compile(r"(^|_)(id|ids|idx|index|uuid|guid|key)$|^unnamed:|^$", re.IGNORECASE)
_SPLIT_NAMES = {"split", "fold", "subset", "partition"}
_SPLIT_VALUES = {
    "train": ("train", "training", "0"),
    "validation": ("validation", "valid", "val", "dev", "1"),
    "test": ("test", "testing", "eval", "2"),
}


@dataclass(frozen=True)
class Guess:
    """A task as far as its data tell. reasons: why each of its keys is what it is, by the key's dotted path."""

    task: dict[str, Value]
    reasons: dict[str, str]
    num_rows: int


@dataclass(frozen=True)
class _Table:
    """The text of the rows; None where a value is missing."""

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, str | None]]

    def texts(self, column: str) -> list[str]:
        return [value for row in self.rows if (value := row.get(column)) is not None]

    def num_missing(self, column: str, *, or_blank: bool = False) -> int:
        return sum(row.get(column) is None or (or_blank and not (row[column] or "").strip()) for row in self.rows)


def guess_task(
    path: Path,
    name: str,
    *,
    source: str,
    target: str | None = None,
    inputs: Sequence[str] = (),
    ask_target: Callable[[Sequence[str], str], str] | None = None,
) -> Guess:
    """Guess a task from a data file. source: its path as the task will name it.

    target, inputs: what is already known. ask_target(columns, guess): decides where a file has no column that is called
    like an answer. Raises DataError for a file that no task can be made of, UsageError for a wrong column.
    """
    table = _read(path)
    split = _split_column(table)
    usable = [column for column in table.columns if column != split and _is_usable(column)]
    if target is None:
        target = _guess_target(table, usable, ask_target)
    _check_columns(table, [target, *inputs])
    chosen = list(inputs) or _guess_inputs(table, [column for column in usable if column != target])
    if not chosen:
        mend = "name one: --input COLUMN"
        raise DataError("no column is left to read", where=str(path), why=f"the answer is `{target}`", mend=mend)
    return _guess(table, name, source, target, chosen, split)


def _read(path: Path) -> _Table:
    rows: list[dict[str, str | None]] = []
    columns: dict[str, None] = {}
    for record in islice(read_file(path), MAX_ROWS):
        rows.append({str(name): _as_text(value) for name, value in record.values.items()})
        columns |= dict.fromkeys(rows[-1])
    if len(rows) < MIN_ROWS:
        mend = f"give at least {MIN_ROWS} rows; some hundreds make a useful adapter"
        raise DataError(f"the file has {len(rows)} rows", where=str(path), mend=mend)
    if len(columns) < 2:
        raise DataError("the file has one column", where=str(path), mend="give one to read and one with the answer")
    return _Table(path, tuple(columns), rows)


def _as_text(value: Any) -> str | None:
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    return None if is_missing else as_text(value).encode("utf-8", "replace").decode("utf-8")


def _is_usable(column: str) -> bool:
    """Whether a prompt template can name the column."""
    return bool(column) and column == column.strip() and not set(column) & set("{}") and column.isprintable()


def _check_columns(table: _Table, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in table.columns:
            guess = did_you_mean(column, table.columns)
            mend = f"did you mean `{guess}`?" if guess else "the columns are " + ", ".join(table.columns[:30])
            raise UsageError(f"there is no column `{column}`", where=str(table.path), mend=mend)
        if not _is_usable(column):
            raise DataError(f"a prompt cannot name the column {column!r}", where=str(table.path), mend="rename it")
        if columns.count(column) > 1:
            raise UsageError(f"the column `{column}` is named twice", mend="the answer cannot be read as well")


def _split_column(table: _Table) -> str | None:
    """A column that already says which split a row belongs to."""
    known = {value for values in _SPLIT_VALUES.values() for value in values}
    for column in table.columns:
        values = {value.strip().lower() for value in table.texts(column)}
        if column.lower() in _SPLIT_NAMES and values <= known and values & set(_SPLIT_VALUES["train"]):
            return column
    return None


def _guess_target(table: _Table, usable: Sequence[str], ask: Callable[[Sequence[str], str], str] | None) -> str:
    lowered = {column.lower(): column for column in reversed(usable)}
    named = next((lowered[name] for name in _TARGET_NAMES if name in lowered), None)
    if named is not None:
        return named
    informative = [column for column in usable if not _ID.search(column) and len(set(table.texts(column))) > 1]
    if not informative:
        mend = "name the column with the answer: --target COLUMN"
        raise DataError("no column looks like an answer", where=str(table.path), mend=mend)
    return ask(usable, informative[-1]) if ask else informative[-1]


def _guess_inputs(table: _Table, others: Sequence[str]) -> list[str]:
    """Columns that say something: neither numbers of rows nor the same everywhere."""
    chosen = [
        column
        for column in others
        if not _ID.search(column)
        and len(set(table.texts(column))) > 1
        and table.num_missing(column) < len(table.rows) / 2
    ]
    return (chosen or [column for column in others if len(set(table.texts(column))) > 1])[:_MAX_INPUTS]


def _guess(table: _Table, name: str, source: str, target: str, inputs: Sequence[str], split: str | None) -> Guess:
    answers = [text for text in table.texts(target) if text.strip()]
    labels = _labels(answers)
    system, template = _prompt(target, inputs, labels)
    metrics, why_metrics = _metrics(target, answers, labels)
    dataset, why_dataset = _dataset(table, source, target, inputs, split, stratify=labels is not None)
    task: dict[str, Value] = {
        "name": name,
        "description": f"{target} from {', '.join(inputs)}",
        "dataset": dataset,
        "prompt": {"system": system, "template": template},
        "input_columns": list(inputs),
        "target_column": target,
        **({"labels": list(labels)} if labels else {}),
        "metrics": list(metrics),
        "generation": {"max_new_tokens": _max_new_tokens(answers)},
    }
    unread = [column for column in table.columns if column not in (*inputs, target, split)]
    reasons = {
        "dataset": why_dataset,
        "prompt": "Say what is asked, as to a person: the base is scored with the same prompt.",
        "input_columns": f"Not read: {', '.join(unread)}." if unread else "",
        "target_column": "The right answer.",
        "labels": "A closed set of answers; a row with another one is an error.",
        "metrics": why_metrics,
        "generation": "Enough for the longest answers here; `atoll check` counts tokens and says if not.",
    }
    return Guess(task, {key: reason for key, reason in reasons.items() if key in task and reason}, len(table.rows))


def _labels(answers: Sequence[str]) -> tuple[str, ...] | None:
    """The closed set that answers come from, if they do: few, short, and each of them several times."""
    counts = Counter(answers)
    few = 2 <= len(counts) <= _MAX_LABELS and len(answers) >= _MIN_ROWS_PER_LABEL * len(counts)
    short = all(len(label) <= _MAX_LABEL_CHARS and "\n" not in label for label in counts)
    return tuple(sorted(counts, key=_natural)) if few and short else None


def _natural(text: str) -> tuple[bool, float, str]:
    """Numbers by size, before words by letter."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    return (math.isnan(number), 0.0 if math.isnan(number) else number, text)


def _prompt(target: str, inputs: Sequence[str], labels: Sequence[str] | None) -> tuple[str, str]:
    asked = target.replace("_", " ")
    system = f"Give the {asked}. Write nothing else."
    if labels is not None:
        shown = ", ".join(labels[:_MAX_LABELS_SHOWN]) + (", ..." if len(labels) > _MAX_LABELS_SHOWN else "")
        system = f"Give the {asked}: answer with one of {shown}. Write nothing else."
    if len(inputs) == 1 and inputs[0].lower() in ("prompt", "instruction", "input", "question"):
        return system, "{" + inputs[0] + "}"
    lines = [f"{column.replace('_', ' ')}: {{{column}}}" for column in inputs]
    return system, "\n".join(line[:1].upper() + line[1:] for line in lines)


def _metrics(target: str, answers: Sequence[str], labels: Sequence[str] | None) -> tuple[tuple[str, ...], str]:
    lengths = sorted(map(len, answers))
    if labels is not None:
        return ("accuracy", "label_match"), "Answers are labels: right or wrong."
    if _all(answers, lambda text: re.match(r"\s*(select|with)\b", text, re.IGNORECASE)):
        return ("sql_canonical", "exact_match"), "Answers are SQL: compared as syntax trees, then as text."
    if _all(answers, _is_json):
        return ("exact_match", "rouge_l"), "Answers are JSON. A list of entities has `entity_f1`."
    if _all(answers, lambda text: re.fullmatch(r"\s*[-+]?\d+([.,]\d+)?\s*%?\s*", text)):
        return ("exact_match", "spearman"), "Answers are numbers: right or wrong, then whether their order is."
    if lengths and lengths[len(lengths) // 2] <= _MAX_LABEL_CHARS:
        return ("accuracy", "rouge_l"), "Answers are short: right or wrong, then the words in common."
    return ("rouge_l", "chrf"), "Answers are long: the words in common, then the letters."


def _all(answers: Sequence[str], fits: Callable[[str], object]) -> bool:
    return bool(answers) and all(map(fits, answers))


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _max_new_tokens(answers: Sequence[str]) -> int:
    longest = max(map(len, answers), default=1)
    return min(_MAX_NEW_TOKENS, 4 * math.ceil((longest / _CHARS_PER_TOKEN + 2) / 4))


def _dataset(
    table: _Table, source: str, target: str, inputs: Sequence[str], split: str | None, *, stratify: bool
) -> tuple[Value, str]:
    """The splits, and what is left out of them."""
    missing = {column: table.num_missing(column) for column in inputs}
    blank = table.num_missing(target, or_blank=True)
    conditions = [f"{_identifier(column)} IS NOT NULL" for column, count in missing.items() if count]
    if blank:
        conditions.append(f"trim(CAST({_identifier(target)} AS VARCHAR)) <> ''")
    dropped = (
        f" Rows without a value are left out ({blank} answers, {sum(missing.values())} inputs)." if conditions else ""
    )
    if split is not None:
        return _by_column(table, source, split, conditions), f"The column `{split}` says where a row belongs.{dropped}"
    query: dict[str, Value] = {"sql": f"SELECT * FROM data WHERE {' AND '.join(conditions)}"} if conditions else {}
    extra: dict[str, Value] = {"together": list(inputs)} | ({"stratify": target} if stratify else {})
    bounds = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
    dataset: dict[str, Value] = {
        name: {"path": source, **query, "part": {"start": start, "end": end, **extra}}
        for name, (start, end) in bounds.items()
    }
    why = "Eight tenths to learn from, one to decide when to stop, one to score on. Equal inputs stay together" + (
        ", and every label keeps its share." if stratify else "."
    )
    return dataset, why + dropped


def _by_column(table: _Table, source: str, split: str, conditions: Sequence[str]) -> Value:
    present = {value.strip().lower() for value in table.texts(split)}
    text = f"lower(trim(CAST({_identifier(split)} AS VARCHAR)))"
    return {
        name: {
            "path": source,
            "sql": " AND ".join(
                [f"SELECT * FROM data WHERE {text} IN ({', '.join(repr(value) for value in values)})", *conditions]
            ),
        }
        for name, values in _SPLIT_VALUES.items()
        if present & set(values)
    }


def _identifier(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'
