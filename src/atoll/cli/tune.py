"""`atoll tune`: train all adapters of a fleet file together."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.garbage import collect_as_usual
from atoll.cli.ludwig_file import Dataset, as_fleet
from atoll.cli.options import DataRoot, Fleet

if TYPE_CHECKING:
    from atoll.training.tune import TuneResult, TuneRun

PLAIN_EVERY_S = 15.0


def tune(
    fleet: Fleet,
    data_root: DataRoot = None,
    dataset: Dataset = None,
    store: Annotated[Path | None, typer.Option(envvar="ATOLL_STORE", help="Where finished adapters go.")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="Only this adapter; may be repeated.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Train all adapters of a fleet file together over one base model.

    Example: atoll tune examples/demo.yaml
    """
    from atoll.adapters.store import AdapterStore, default_store_root
    from atoll.config.load import load_fleet
    from atoll.training.tune import TuneRun

    fleet = as_fleet(fleet, dataset)
    config = load_fleet(fleet)
    if adapter:
        config = config.only(adapter)
    run_folder = Path(config.output or Path("runs") / fleet.stem)
    with _display(as_json) as report:
        run = TuneRun(
            config,
            run_folder=run_folder,
            store=AdapterStore(store or default_store_root()),
            data_root=data_root,
            report=report,
        )
        with stopping(run):
            try:
                collect_as_usual()
                result = run.run(resume=resume)
            except KeyboardInterrupt:
                print("stopped before training began; there is nothing to keep", file=sys.stderr)
                raise typer.Exit(130) from None
    _print_result(result, fleet, as_json)


def _print_result(result: TuneResult, fleet: Path, as_json: bool) -> None:
    if result.finished and not as_json:
        from atoll.cli.bill_report import bill_lines

        print(f"tuned {', '.join(adapter.id for adapter in result.adapters)}")
        print("\n".join(bill_lines(result.bill, result.quote)))
        print(f"next: atoll eval {fleet}")
    if not result.finished:
        print(f"stopped; the checkpoint is in {result.run_folder}", file=sys.stderr)
        print(f"to go on: atoll tune {fleet} --resume", file=sys.stderr)
        raise typer.Exit(130)


@contextmanager
def stopping(run: TuneRun) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops after the running pass, with a checkpoint; the second one at once.

    While the base and the data are still being read, the first one stops at once.
    """

    def stop(number: int, _frame: object) -> None:
        if not run.is_training:
            raise KeyboardInterrupt
        print("stopping after this pass, with a checkpoint ...", file=sys.stderr)
        run.request_stop()
        signal.signal(number, signal.SIG_DFL)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _display(as_json: bool) -> Iterator[Any]:
    """A function that takes the run's events: JSON lines, live bars on a terminal, else a line now and then."""
    if as_json:
        yield lambda event: print(json.dumps(event), flush=True)
        return
    if sys.stdout.isatty():
        with _Bars() as bars:
            yield bars
        return
    yield _Lines()


def describe(event: dict[str, Any]) -> str | None:
    """One line for an event that happens once; None for progress."""
    match event["event"]:
        case "base":
            return f"base model {event['name']}: {event['num_params'] / 1e6:.0f}M parameters, {event['digest'][:19]}"
        case "data":
            return (
                f"{event['adapter']}: {event['num_examples']} examples of {event['task']} "
                f"({event['num_tokens']} tokens), {event['num_validation']} for validation; "
                f"length limit {event['max_length']}, {event['num_cut']} cut"
            )
        case "plan":
            return f"{event['adapter']}: {event['total_steps']} steps, peak rate {event['learning_rate']:.2g}"
        case "quote":
            from atoll.cli.bill_report import quote_line

            return quote_line(event["quote"])
        case "resumed":
            return f"resumed from {event['checkpoint']} after {event['num_passes']} passes"
        case "published":
            loss = event["validation_loss"]
            kept = "" if loss is None else f", best at step {event['best_step']} (validation loss {loss:.4f})"
            return f"{event['adapter']}: in the store{kept}, {100 * event['cost_usd']:.2f} cents"
    return None


def _numbers(event: dict[str, Any]) -> str:
    loss, validation = ("-" if event[key] is None else f"{event[key]:.3f}" for key in ("step_loss", "validation_loss"))
    return f"loss {loss}  validation {validation}"


class _Speed:
    """Tokens a second over all adapters, since the first event."""

    def __init__(self) -> None:
        self._started_at_s = time.monotonic()
        self._first: dict[str, int] = {}
        self._latest: dict[str, int] = {}

    def update(self, event: dict[str, Any]) -> float:
        name = event["name"]
        self._first.setdefault(name, event["num_tokens"])
        self._latest[name] = event["num_tokens"]
        seconds = time.monotonic() - self._started_at_s
        return (sum(self._latest.values()) - sum(self._first.values())) / max(seconds, 1e-9)


class _Lines:
    """For logs and pipes: events as lines, progress of each adapter now and then."""

    def __init__(self) -> None:
        self._speed: _Speed | None = None
        self._printed_at_s: dict[str, float] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] != "progress":
            if line := describe(event):
                print(line, flush=True)
            return
        self._speed = self._speed or _Speed()
        speed, name, now_s = self._speed.update(event), event["name"], time.monotonic()
        if event["finished"] or now_s - self._printed_at_s.get(name, 0.0) >= PLAIN_EVERY_S:
            self._printed_at_s[name] = now_s
            step = f"{event['step']}/{event['total_steps']}"
            print(f"{name}: step {step}  {_numbers(event)}  {speed:.0f} tokens/s in all", flush=True)


class _Bars:
    """For terminals: one live bar for each adapter."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
        )
        self._bars: dict[str, Any] = {}
        self._speed: _Speed | None = None

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] != "progress":
            if line := describe(event):
                self._progress.console.print(line, markup=False, highlight=False)
            return
        self._speed = self._speed or _Speed()
        name, speed = event["name"], self._speed.update(event)
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=event["total_steps"], numbers="")
        completed = event["total_steps"] if event["finished"] else event["step"]
        self._progress.update(self._bars[name], completed=completed, numbers=f"{_numbers(event)}  {speed:.0f} tokens/s")
