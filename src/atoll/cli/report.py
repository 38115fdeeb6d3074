"""`atoll report`: make the report of an evaluation again, from its raw answers alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli.options import AsJson

if TYPE_CHECKING:
    from atoll.evaluation.results import Results

_PIPE_WIDTH = 160


def report(
    folder: Annotated[
        Path, typer.Argument(help="The folder of an evaluation, or of the run above it.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Make results.json, report.md, report.html and scores.svg again from the raw answers of `atoll eval`.

    Example: atoll report runs/demo
    """
    from atoll.evaluation.report import write_report

    evaluation = _evaluation_folder(folder)
    results = write_report(evaluation)
    print_results(results, evaluation, as_json=as_json)


def print_results(results: Results, folder: Path, *, as_json: bool) -> None:
    """The table, what it does not show, and where the report lies; or all of it as one JSON object."""
    if as_json:
        print(results.model_dump_json())
        return
    from rich.console import Console

    from atoll.evaluation.report import summary_lines, terminal_table

    # A pipe has no width of its own, and a table cut to 80 columns would lose figures.
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(terminal_table(results))
    print("\n".join(summary_lines(results)))
    print(f"report: {folder / 'report.html'}")


def _evaluation_folder(folder: Path) -> Path:
    """`folder`, or `eval` in it where that is what holds raw answers."""
    below = folder / "eval"
    return below if not (folder / "raw").is_dir() and (below / "raw").is_dir() else folder
