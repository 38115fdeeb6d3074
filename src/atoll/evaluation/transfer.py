"""Transfer: every adapter, and the bare base, on examples of every task of the fleet.

What an adapter gains or loses on tasks that it was not tuned on, beside its own. `transfer_run.py` writes what is
scored here.

    <folder>/raw/_transfer/run.json                  TransferRecord; written last
    <folder>/raw/_transfer/<adapter>/<member>.jsonl  one Output a line; the base's are below `_base`
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from atoll.evaluation.outputs import Output, Part, RunRecord, read_lines, read_part
from atoll.evaluation.scores import Score, example_statistics, score_of
from atoll.evaluation.statistics import bootstrap, bootstrap_lift
from atoll.tasks.metrics import find_metric

_BASE_FOLDER = "_base"  # no adapter's name begins with a mark


class TransferTask(Part):
    """The examples of one member's task, scored by the task's first metric."""

    member: str
    metric: str
    num_examples: int


class TransferAnswers(Part):
    """One adapter's answers to one member's examples. adapter: its member's name, None for the base."""

    adapter: str | None
    member: str
    output_digest: str


class TransferRecord(Part):
    """What was asked, of whom. adapters: digests by the members' names."""

    format_version: Literal[1] = 1
    base_digest: str
    num_examples: int
    seed: int
    adapters: dict[str, str]
    tasks: tuple[TransferTask, ...]
    answers: tuple[TransferAnswers, ...]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        members = [task.member for task in self.tasks]
        expected = [(adapter, member) for adapter in (None, *self.adapters) for member in members]
        if [(item.adapter, item.member) for item in self.answers] != expected:
            raise ValueError("answers must be those of the base and of every adapter to every task")
        return self


class TransferScore(Part):
    """One cell: an adapter's score on a member's task, and its lift over the base there; None for the base itself."""

    adapter: str | None
    member: str
    score: Score
    lift: Score | None


class Transfer(Part):
    """The matrix, row by row, the base's row first."""

    num_examples: int
    tasks: tuple[TransferTask, ...]
    cells: tuple[TransferScore, ...]


def score_transfer(folder: Path, run: RunRecord) -> Transfer | None:
    """Score the matrix in `folder`; None where there is none, or one of other adapters than the run's."""
    record = read_transfer(folder)
    if record is None:
        return None
    adapters = {member.name: member.adapter_digest for member in run.members}
    if (record.base_digest, record.adapters) != (run.base.digest, adapters):
        return None
    metrics = {task.member: find_metric(task.metric, where=task.member) for task in record.tasks}
    tables = {}
    for item in record.answers:
        outputs = read_lines(Output, answers_path(folder, item.adapter, item.member), item.output_digest)
        tables[item.adapter, item.member] = example_statistics(metrics[item.member], outputs)
    cells = []
    for (adapter, member), rows in tables.items():
        aggregate, base = metrics[member].aggregate, tables[None, member]
        lift = None if adapter is None else score_of(bootstrap_lift(base, rows, aggregate, seed=record.seed))
        score = score_of(bootstrap(rows, aggregate, seed=record.seed))
        cells.append(TransferScore(adapter=adapter, member=member, score=score, lift=lift))
    return Transfer(num_examples=record.num_examples, tasks=record.tasks, cells=tuple(cells))


def read_transfer(folder: Path) -> TransferRecord | None:
    """The record in `folder`, if there is one. Raises DataError for a damaged one."""
    path = transfer_path(folder)
    return read_part(TransferRecord, path) if path.is_file() else None


def transfer_path(folder: Path) -> Path:
    return folder / "raw" / "_transfer" / "run.json"


def answers_path(folder: Path, adapter: str | None, member: str) -> Path:
    return folder / "raw" / "_transfer" / (adapter or _BASE_FOLDER) / f"{member}.jsonl"
