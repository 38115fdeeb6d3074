"""`atoll eval`: score a fleet's adapters against their base model and published figures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from atoll.evaluation.results import Results

PLAIN_EVERY_S = 15.0


def evaluate(
    fleet: Annotated[Path, typer.Argument(help="The fleet file (YAML).", show_default=False)],
    data_root: Annotated[
        Path | None, typer.Option(help="Folder with <task>/<split>.jsonl.gz (or .csv, .parquet) to read instead.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most test examples of each task.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Decides which examples, and the resampling.")] = 0,
    store: Annotated[Path | None, typer.Option(envvar="ATOLL_STORE", help="Where the adapters are.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for answers and report; runs/<fleet>/eval unless given.")
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="Only this adapter, NAME or NAME@REVISION; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as one JSON object.")] = False,
) -> None:
    """Score a fleet's adapters against their base model, on test examples that neither has seen.

    Example: atoll eval examples/demo.yaml --limit 200
    """
    from atoll.adapters.store import AdapterStore, default_store_root
    from atoll.config.load import load_fleet
    from atoll.evaluation.fleet import evaluate_fleet

    config = load_fleet(fleet)
    folder = output or Path(config.output or Path("runs") / fleet.stem) / "eval"
    with _progress(is_quiet=as_json) as on_progress:
        results = evaluate_fleet(
            config,
            fleet_path=fleet,
            store=AdapterStore(store or default_store_root()),
            folder=folder,
            adapter_ids=adapter or (),
            data_root=data_root,
            limit=limit,
            seed=seed,
            on_progress=on_progress,
        )
    if as_json:
        print(results.model_dump_json())
    else:
        _print_results(results, folder)


def _print_results(results: Results, folder: Path) -> None:
    from rich.console import Console

    from atoll.evaluation.report import summary_lines, terminal_table

    # A pipe has no width of its own, and a table cut to 80 columns would lose figures.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(terminal_table(results))
    print("\n".join(summary_lines(results)))
    print(f"report: {folder / 'report.md'}")


@contextmanager
def _progress(*, is_quiet: bool) -> Iterator[Callable[[str, float | None], None]]:
    """Takes what is being done and the fraction done: live on a terminal, else a line now and then, all on stderr."""
    if is_quiet:
        yield lambda what, fraction: None
        return
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=None)

        def show(what: str, fraction: float | None) -> None:
            if progress.tasks[0].description != what:
                progress.reset(bar, description=what)  # the time that is left is another thing's now
            progress.update(bar, total=None if fraction is None else 1.0, completed=fraction or 0.0)

        yield show


class _Lines:
    """For logs and pipes: a line for each new thing, then one now and then."""

    def __init__(self) -> None:
        self._what = ""
        self._printed_at_s = 0.0

    def __call__(self, what: str, fraction: float | None) -> None:
        now_s = time.monotonic()
        if what != self._what or now_s - self._printed_at_s >= PLAIN_EVERY_S:
            self._what, self._printed_at_s = what, now_s
            print(what if fraction is None else f"{what}: {fraction:.0%}", file=sys.stderr, flush=True)
