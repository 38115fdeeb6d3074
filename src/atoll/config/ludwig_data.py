"""How Ludwig divides the rows of one data file, as the sources of a task's splits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from atoll.config.explain import Loc
from atoll.config.ludwig_schema import Preprocessing, Split
from atoll.config.yaml_text import Value

_SPLITS = ("train", "validation", "test")
_SPLIT_COLUMN = "split"
# Ludwig's own, so that whoever reads the file finds a number they know; the rows that it draws are others.
_SEED = 42
_LOC: Loc = ("preprocessing", "split")


class Report(Protocol):
    """Takes what is worth a note, and what cannot be translated."""

    def note(self, loc: Loc, why: str) -> None: ...

    def problem(self, loc: Loc, what: str, mend: str) -> None: ...


def sources(path: str, preprocessing: Preprocessing, columns: Sequence[str] | None, report: Report) -> Value:
    """The splits of a task's `dataset` section. columns: those of the data file, where they are known."""
    split = preprocessing.split or Split()
    # Without a type in the file, a column of that name decides.
    if "type" not in split.model_fields_set and _SPLIT_COLUMN in (columns or ()):
        split = Split(type="fixed")
    if split.type == "fixed":
        found = _fixed(path, split.column or _SPLIT_COLUMN, preprocessing.sample_ratio)
    else:
        found = _drawn(path, split, preprocessing.sample_ratio, report)
    if "validation" not in found:
        why = "there are no rows for validation: a tenth of train, and at most 500 inputs, are set aside for it"
        report.note((*_LOC, "probabilities"), why)
    return found


def _fixed(path: str, column: str, ratio: float) -> dict[str, Value]:
    part: dict[str, Value] = {} if ratio == 1.0 else {"part": {"end": ratio, "seed": _SEED}}
    return {
        name: {"path": path, "sql": f"SELECT * FROM data WHERE TRY_CAST({_identifier(column)} AS DOUBLE) = {number}"}
        | part
        for number, name in enumerate(_SPLITS)
    }


def _drawn(path: str, split: Split, ratio: float, report: Report) -> dict[str, Value]:
    shares = split.probabilities
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6 or shares[0] == 0:
        mend = "write three shares that make 1, for example [0.7, 0.1, 0.2]"
        report.problem((*_LOC, "probabilities"), "must be three shares that make 1, train's above 0", mend)
        return {"train": path}
    if split.type != "random" and split.column is None:
        report.problem(_LOC, f"is of the type {split.type}, and names no column", "add `column: ...`")
        return {"train": path}
    bounds = [0.0, *(round(bound, 9) for bound in accumulate(shares[:2])), 1.0]
    spans = {name: (start, end) for name, start, end in zip(_SPLITS, bounds, bounds[1:], strict=False) if end > start}
    if split.type == "datetime":
        return {name: _between(path, str(split.column), *span, ratio) for name, span in spans.items()}
    report.note(_LOC, "the shares are the same, the rows that are drawn are others")
    extra: dict[str, Value] = {}
    if split.type == "stratify":
        extra = {"stratify": split.column}
    elif split.type == "hash":
        extra = {"together": [str(split.column)]}
    parts = {name: (round(start * ratio, 9), round(end * ratio, 9)) for name, (start, end) in spans.items()}
    if empty := [name for name, (start, end) in parts.items() if start >= end]:
        report.problem(("preprocessing", "sample_ratio"), f"leaves nothing for {empty[0]}", "give a larger share")
    return {
        name: {"path": path, "part": {"start": start, "end": end, "seed": _SEED} | extra}
        for name, (start, end) in parts.items()
    }


def _between(path: str, column: str, start: float, end: float, ratio: float) -> Value:
    """The rows between two shares of the file, in the order of their times."""
    rank = f"row_number() OVER (ORDER BY CAST({_identifier(column)} AS TIMESTAMP)) / count(*) OVER ()"
    source: dict[str, Value] = {
        "path": path,
        "sql": f"SELECT * FROM data QUALIFY {rank} > {start} AND {rank} <= {end}",
    }
    return source | ({} if ratio == 1.0 else {"part": {"end": ratio, "seed": _SEED}})


def _identifier(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'
