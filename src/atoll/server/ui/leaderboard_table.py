"""The leaderboard: tasks by contenders, from the results of all evaluations below the folder of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll.config.task import PUBLISHED_NAMES
from atoll.errors import AtollError, DataError, NotFound
from atoll.evaluation.outputs import ADAPTER, BASE
from atoll.evaluation.results import MemberResult, Results
from atoll.evaluation.scores import Score, Verdict
from atoll.server.caller import Caller
from atoll.server.ui.file_cache import FileCache
from atoll.server.ui.runs_folder import MAX_RUNS, RunsFolder

MAX_RESULTS_BYTES = 32 << 20
MAX_ROWS = 1000
_MAX_CONTENDERS = 12
_MAX_RESULTS = 16
_SHOWN_PUBLISHED = ("gpt_4", "mistral_7b")
ALL = ""


@dataclass(frozen=True)
class Cell:
    """A contender's score on a task. low, high: None for published ones. verdict: of the adapter against it."""

    value: float
    low: float | None = None
    high: float | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Row:
    """One adapter on its task, as one evaluation found it. lift: over the base model."""

    run: str
    member: str
    adapter_id: str
    task: str
    category: str
    metric: str
    num_examples: int
    created: str
    cells: dict[str, Cell]
    lift: Score | None
    lift_verdict: Verdict | None


@dataclass(frozen=True)
class Leaderboard:
    """Rows, and the contenders that are columns: the adapter, the base, others, then published scores.

    unreadable: runs whose results cannot be read; admins alone are told.
    """

    rows: tuple[Row, ...]
    contenders: tuple[str, ...]
    runs: tuple[str, ...]
    unreadable: tuple[str, ...]


class ResultsFiles:
    """Results as they are on disk, read again when they change. Methods block: call them in threads."""

    def __init__(self, runs: RunsFolder) -> None:
        self._runs = runs
        self._results: FileCache[Results] = FileCache(_MAX_RESULTS)
        self._rows: FileCache[tuple[Row, ...]] = FileCache(MAX_RUNS)

    def folder(self, run: str) -> Path:
        """The folder of a run's evaluation. Raises NotFound."""
        return self._runs.folder(run) / "eval"

    def board(self, caller: Caller, run: str = ALL) -> Leaderboard:
        """Of one run; or of all, then with the latest evaluation of each adapter on each task.

        What the caller may not use is not there. Raises NotFound for a run without scores for this caller, and
        DataError for admins where its results cannot be read.
        """
        if run:
            rows = self._rows_of_one(caller, run)
            return Leaderboard(tuple(rows[:MAX_ROWS]), _contenders(rows), (run,), ())
        found, unreadable = [], []
        for name in [known.name for known in self._runs.latest() if known.has_results]:
            try:
                found += self._visible(caller, name)
            except (AtollError, OSError):
                unreadable.append(name)
        runs = tuple(dict.fromkeys(row.run for row in found))
        rows = _latest(found)
        told = tuple(unreadable) if "admin" in caller.scopes else ()
        return Leaderboard(tuple(rows[:MAX_ROWS]), _contenders(rows), runs, told)

    def member(self, caller: Caller, run: str, name: str) -> tuple[Results, MemberResult]:
        """One adapter's results. Raises NotFound, for what is not the caller's too, and DataError as `board` does."""
        if name in [row.member for row in self._rows_of_one(caller, run)]:
            path = self._path(run)
            results = self._results.get(path, lambda: _parse(path))
            for member in results.members:
                if member.name == name and caller.may_use(_name(member.adapter_id)):
                    return results, member
        raise NotFound(f"the run {run[:80]!r} has no scores of {name[:80]!r}", mend="see /ui/leaderboard")

    def _rows_of_one(self, caller: Caller, run: str) -> list[Row]:
        """The caller's rows of one run. Raises as `board` does; which runs others have is nobody's business."""
        try:
            rows = self._visible(caller, run)
        except DataError:
            if "admin" in caller.scopes:
                raise
            rows = []
        except (NotFound, OSError):
            rows = []
        if not rows:
            mend = "evaluate it with `atoll eval FLEET`, or see /ui/leaderboard for those that there are"
            raise NotFound(f"there are no scores of a run named {run[:80]!r}", mend=mend)
        return rows

    def _visible(self, caller: Caller, run: str) -> list[Row]:
        path = self._path(run)

        def make() -> tuple[Row, ...]:
            results = _parse(path)
            return tuple(_row(run, results, member) for member in results.members)

        return [row for row in self._rows.get(path, make) if caller.may_use(_name(row.adapter_id))]

    def _path(self, run: str) -> Path:
        return self.folder(run) / "results.json"


def sort_key(column: str) -> Callable[[Row], tuple[bool, float | str]]:
    """How rows are ordered by a column: `task`, `lift`, `examples` or a contender; rows without a value are last."""

    def key(row: Row) -> tuple[bool, float | str]:
        if column == "task":
            return False, row.task
        if column == "examples":
            return False, -row.num_examples
        if column == "lift":
            return row.lift is None, -row.lift.value if row.lift else 0.0
        cell = row.cells.get(column)
        return cell is None, -cell.value if cell else 0.0

    return key


def shown_rows(rows: Iterable[Row], column: str, *, reverse: bool, query: str = "") -> list[Row]:
    """The rows whose task, adapter or category has the words of `query`, in order."""
    words = query.casefold().split()

    def has_words(row: Row) -> bool:
        text = f"{row.task} {row.adapter_id} {row.category} {row.run}".casefold()
        return all(word in text for word in words)

    found = sorted(filter(has_words, rows), key=lambda row: row.task)
    key = sort_key(column)
    with_value = sorted((row for row in found if not key(row)[0]), key=key, reverse=reverse)
    return with_value + [row for row in found if key(row)[0]]


def contender_title(name: str) -> str:
    """A contender as readers see it."""
    return PUBLISHED_NAMES.get(name.removeprefix("published:"), name.removeprefix("published:"))


def _name(adapter_id: str) -> str:
    return adapter_id.partition("@")[0]


def _parse(path: Path) -> Results:
    if path.stat().st_size > MAX_RESULTS_BYTES:
        raise DataError("the results are too large for this page", mend="see report.md beside them")
    try:
        return Results.model_validate_json(path.read_bytes())
    except ValueError:
        mend = "score the answers again: `atoll report`, or evaluate again"
        raise DataError("the results are damaged, or of another version of Atoll", mend=mend) from None


def _row(run: str, results: Results, member: MemberResult) -> Row:
    primary = member.primary
    cells = {
        name: Cell(
            score.value, score.low, score.high, primary.against[name].verdict if name in primary.against else None
        )
        for name, score in primary.scores.items()
    }
    compared = {comparison.contender: comparison.verdict for comparison in member.published_comparisons}
    for name in _SHOWN_PUBLISHED if member.published else ():
        value = getattr(member.published, name)
        if value is not None:
            cells[f"published:{name}"] = Cell(value, verdict=compared.get(name))
    over_base = primary.against.get(BASE)
    return Row(
        run=run,
        member=member.name,
        adapter_id=member.adapter_id,
        task=member.task,
        category=member.category,
        metric=primary.metric,
        num_examples=member.num_examples,
        created=results.run.created,
        cells=cells,
        lift=over_base.lift if over_base else None,
        lift_verdict=over_base.verdict if over_base else None,
    )


def _latest(rows: Sequence[Row]) -> list[Row]:
    """Of each adapter's evaluations on a task the latest one."""
    latest: dict[tuple[str, str], Row] = {}
    for row in sorted(rows, key=lambda row: row.created):
        latest[row.task, row.member] = row
    return list(latest.values())


def _contenders(rows: Sequence[Row]) -> tuple[str, ...]:
    names = dict.fromkeys(name for row in rows for name in row.cells)
    others = [name for name in names if name not in (ADAPTER, BASE) and not name.startswith("published:")]
    published = [f"published:{name}" for name in _SHOWN_PUBLISHED if f"published:{name}" in names]
    first = [name for name in (ADAPTER, BASE) if name in names]
    return tuple([*first, *others, *published][:_MAX_CONTENDERS])
