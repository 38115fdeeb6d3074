"""`atoll eval`: score a fleet's adapters against their base model and published figures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.eval_options import (
    Adapters,
    Against,
    Concurrency,
    Forgetting,
    Fresh,
    InputPrice,
    MaxUsd,
    Output,
    OutputPrice,
    Transfer,
    contenders,
    remote_options,
)
from atoll.cli.garbage import collect_as_usual
from atoll.cli.loading import open_store
from atoll.cli.ludwig_file import Dataset, as_fleet
from atoll.cli.options import AsJson, DataRoot, Fleet, Store
from atoll.cli.report import print_results

PLAIN_EVERY_S = 15.0


def evaluate(
    fleet: Fleet,
    data_root: DataRoot = None,
    dataset: Dataset = None,
    limit: Annotated[int, typer.Option(min=1, help="Most test examples of each task.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Decides which examples, and the resampling.")] = 0,
    store: Store = None,
    output: Output = None,
    adapter: Adapters = None,
    against: Against = None,
    concurrency: Concurrency = 8,
    max_usd: MaxUsd = None,
    usd_per_million_input: InputPrice = None,
    usd_per_million_output: OutputPrice = None,
    fresh: Fresh = False,
    forgetting: Forgetting = True,
    transfer: Transfer = 0,
    as_json: AsJson = False,
) -> None:
    """Score a fleet's adapters against their base model, on test examples that neither has seen.

    The most frequent answer and the nearest training example answer too. Run again, it only asks what is missing.

    Example: atoll eval examples/demo.yaml --against few-shot:3 --against openai:gpt-4o --max-usd 2
    """
    from atoll.config.load import load_fleet
    from atoll.evaluation.fleet import evaluate_fleet

    config = load_fleet(fleet := as_fleet(fleet, dataset))
    folder = output or Path(config.output or Path("runs") / fleet.stem) / "eval"
    with _progress(is_quiet=as_json) as on_progress:
        collect_as_usual()
        results = evaluate_fleet(
            config,
            fleet_path=fleet,
            store=open_store(store),
            folder=folder,
            adapter_ids=adapter or (),
            data_root=data_root,
            limit=limit,
            seed=seed,
            against=contenders(against),
            remote=remote_options(concurrency, max_usd, usd_per_million_input, usd_per_million_output),
            is_fresh=fresh,
            forgetting=forgetting,
            num_transfer=transfer,
            on_progress=on_progress,
        )
    print_results(results, folder, as_json=as_json)


@contextmanager
def _progress(*, is_quiet: bool) -> Iterator[Callable[[str, float | None], None]]:
    """Takes what is being done and the fraction done: live on a terminal, else a line now and then, all on stderr.

    What follows " · " in it is a figure that changes.
    """
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
            if _thing(progress.tasks[0].description) != _thing(what):
                progress.reset(bar)  # the time that is left is another thing's now
            progress.update(bar, description=what, total=None if fraction is None else 1.0, completed=fraction or 0.0)

        yield show


class _Lines:
    """For logs and pipes: a line for each new thing, then one now and then."""

    def __init__(self) -> None:
        self._what = ""
        self._printed_at_s = 0.0

    def __call__(self, what: str, fraction: float | None) -> None:
        now_s = time.monotonic()
        if _thing(what) != self._what or now_s - self._printed_at_s >= PLAIN_EVERY_S:
            self._what, self._printed_at_s = _thing(what), now_s
            print(what if fraction is None else f"{what}: {fraction:.0%}", file=sys.stderr, flush=True)


def _thing(what: str) -> str:
    return what.partition(" · ")[0]
