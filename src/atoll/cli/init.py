"""`atoll init`: a first fleet file and task file from your data, from a Ludwig file, or from an example."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from atoll.cli.init_files import Plan

_EXAMPLE_ROWS = 300
_EXAMPLE_NAME = "tickets.csv"


def init(
    data: Annotated[
        Path | None,
        typer.Argument(help="A CSV, JSONL or Parquet file; without one, an example is made.", show_default=False),
    ] = None,
    target: Annotated[str | None, typer.Option(help="The column with the right answer.")] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="A column that the model reads; may be repeated.")
    ] = None,
    from_ludwig: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Translate this Ludwig file (YAML).")
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="With --from: the data file that Ludwig was given.")] = None,
    output: Annotated[Path, typer.Option(help="The folder to write to.")] = Path(),
    base_model: Annotated[str, typer.Option(help="Hub id, folder, .gguf file or alias.")] = "smollm2-135m-instruct",
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a fleet file and a task file to start from.

    Looks at the columns of a data file, guesses which one is the answer and how it is scored, and says why in comments.
    Example: atoll init tickets.csv --target team
    """
    from atoll.cli.init_files import plan_from_data, plan_from_ludwig, run_folder, write_plan

    _check_options(data, target, inputs, from_ludwig, dataset)
    made = None
    if from_ludwig is not None:
        plan = plan_from_ludwig(from_ludwig, output, dataset, output=run_folder(output))
    else:
        if data is None:
            made = data = _write_example(output, force=force)
        ask = _ask_target if sys.stdin.isatty() and sys.stdout.isatty() and not as_json else None
        plan = plan_from_data(data, output, base_model=base_model, target=target, inputs=inputs or (), ask_target=ask)
    write_plan(plan, force=force)
    _report(plan, made, as_json=as_json)


def _check_options(
    data: Path | None,
    target: str | None,
    inputs: Sequence[str] | None,
    from_ludwig: Path | None,
    dataset: Path | None,
) -> None:
    from atoll.errors import UsageError

    if from_ludwig is not None and (data or target or inputs):
        mend = f"write: atoll init --from {from_ludwig} --dataset {data or 'FILE'}"
        raise UsageError("--from says what the columns are; a data file comes with --dataset", mend=mend)
    if dataset is not None and from_ludwig is None:
        raise UsageError("--dataset goes with --from", mend=f"write: atoll init {dataset}")
    if data is None and from_ludwig is None and (target or inputs):
        raise UsageError("--target and --input name columns of a data file", mend="write: atoll init FILE ...")


def _write_example(folder: Path, *, force: bool) -> Path:
    """Messages to a help desk and the queue that each belongs to, as a file to look at."""
    from atoll.errors import UsageError
    from atoll.files import write_atomic
    from atoll.tasks.generated.support import rows

    path = folder / _EXAMPLE_NAME
    if path.exists() and not force:
        raise UsageError("there is such a file already", where=str(path), mend=f"write: atoll init {path}")
    text = io.StringIO()
    writer = csv.DictWriter(text, ["message", "queue"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows("train")[:_EXAMPLE_ROWS])
    write_atomic(path, text.getvalue())
    return path


def _ask_target(columns: Sequence[str], guess: str) -> str:
    """Ask until one of the columns is named; Enter takes the guess."""
    print(f"columns: {', '.join(columns)}")
    while True:
        answer = str(typer.prompt("Which one is the right answer?", default=guess)).strip()
        if answer in columns:
            return answer
        print(f"there is no column {answer!r}")


def _report(plan: Plan, made: Path | None, *, as_json: bool) -> None:
    from atoll.cli.output import print_json

    if as_json:
        files = {"fleet": str(plan.fleet_path), "task": str(plan.task_path)}
        print_json(files | {"data": str(made) if made else None, "notes": list(plan.notes)})
        return
    for what, path in (("data", made), ("task", plan.task_path), ("fleet", plan.fleet_path)):
        if path is not None:
            print(f"{what + ':':<7}{path}")
    for note in plan.notes:
        print(f"  {note}")
    if not plan.checks_data:
        print("  the data file is not there yet: see `dataset` in the task")
    print(f"next:  atoll check {plan.fleet_path}")
    print(f"       atoll tune {plan.fleet_path}")
    print(f"       atoll eval {plan.fleet_path}")
