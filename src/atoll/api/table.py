"""Evaluation from Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.api.adapter import open_store
from atoll.api.fleet import AnyFleet, AnyPath, as_fleet
from atoll.api.html import table
from atoll.errors import DataError, NotFound, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from atoll.evaluation.results import MemberResult, Results
    from atoll.evaluation.scores import MetricResult

Row = dict[str, Any]
_RESULTS_NAME = "results.json"


class EvalTable:
    """Scores of adapters against their base: one row for each adapter and metric.

    results: the whole of results.json. folder: with the report, the plot and every single answer.
    """

    def __init__(self, results: Results, folder: Path) -> None:
        self.results = results
        self.folder = folder
        self.rows: list[Row] = [_row(member, metric) for member in results.members for metric in member.metrics]

    @classmethod
    def from_folder(cls, folder: AnyPath) -> EvalTable:
        """The scores of an evaluation that has been run. Raises NotFound, or DataError for a damaged file."""
        from pydantic import ValidationError

        from atoll.evaluation.results import Results

        path = Path(folder) / _RESULTS_NAME
        try:
            return cls(Results.model_validate_json(path.read_bytes()), Path(folder))
        except OSError as error:
            mend = "evaluate first: atoll.evaluate(fleet)"
            raise NotFound("there are no results", where=str(path), why=error.strerror, mend=mend) from None
        except ValidationError as error:
            mend = "make them anew from the raw answers: atoll report"
            raise DataError("the results are damaged", where=str(path), why=str(error)[:300], mend=mend) from None

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a data frame. Raises UsageError where pandas is not installed."""
        try:
            import pandas as pd
        except ImportError:
            raise UsageError("pandas is not installed", mend="pip install 'atoll[notebook]'") from None
        return pd.DataFrame(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __repr__(self) -> str:
        adapters = [member.adapter_id for member in self.results.members]
        return f"EvalTable({len(self)} scores of {', '.join(adapters)}; {self.folder})"

    def _repr_html_(self) -> str:
        headers = ("adapter", "task", "metric", "n", "base", "adapter's", "lift", "95 %", "adapter vs base")
        rows = [
            (row["adapter"], row["task"], row["metric"], row["num_examples"], row["score_base"], row["score_adapter"],
             row["lift"], f"{row['lift_low']:+.3f} to {row['lift_high']:+.3f}", row["verdict"])
            for row in self.rows
        ]  # fmt: skip
        return table(headers, rows, f"{self.folder}")


def evaluate(
    fleet: AnyFleet,
    *,
    adapters: Sequence[str] = (),
    store: AnyPath | None = None,
    data_root: AnyPath | None = None,
    limit: int | None = 1000,
    seed: int = 0,
    against: Sequence[str] = (),
    max_usd: float | None = None,
    forgetting: bool = True,
    output: AnyPath | None = None,
    on_progress: Callable[[str, float | None], None] | None = None,
) -> EvalTable:
    """Score a fleet's adapters against their base, as `atoll eval` does.

    adapters: only these, by name or name@revision. limit: most test examples of each task. against: further contenders,
    as `--against` names them (`few-shot:3`, `openai:gpt-4o`). max_usd: what those may cost. forgetting: also measure
    what tuning has cost in generality. output: the folder for answers and report, `runs/<name>/eval` unless given.
    on_progress: called with what is done, and which share of it. Raises AtollError.
    """
    from atoll.evaluation.contenders import parse_contenders
    from atoll.evaluation.fleet import evaluate_fleet
    from atoll.evaluation.spending import RemoteOptions

    chosen = as_fleet(fleet)
    folder = Path(output) if output is not None else chosen.run_folder / "eval"
    results = evaluate_fleet(
        chosen.config,
        fleet_path=Path(f"{chosen.name}.yaml"),
        store=open_store(store),
        folder=folder,
        adapter_ids=adapters,
        data_root=Path(data_root) if data_root is not None else None,
        limit=limit,
        seed=seed,
        against=parse_contenders(against),
        remote=RemoteOptions(max_usd=max_usd),
        forgetting=forgetting,
        on_progress=on_progress or (lambda what, fraction: None),
    )
    return EvalTable(results, folder)


def _row(member: MemberResult, metric: MetricResult) -> Row:
    """Scores of all contenders, and the adapter against the base."""
    row: Row = {
        "adapter": member.adapter_id,
        "task": member.task,
        "metric": metric.metric,
        "num_examples": member.num_examples,
    }
    row |= {f"score_{name}": score.value for name, score in metric.scores.items()}
    against = metric.against["base"]
    return row | {
        "lift": against.lift.value,
        "lift_low": against.lift.low,
        "lift_high": against.lift.high,
        "p_value": against.p_value,
        "verdict": against.verdict,
    }
