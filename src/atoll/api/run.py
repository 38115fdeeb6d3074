"""Tuning from Python."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.api.adapter import Adapter, open_store
from atoll.api.fleet import AnyFleet, AnyPath, as_fleet
from atoll.api.html import table

if TYPE_CHECKING:
    from atoll.training.tune import TuneRun

Event = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What a tuning run made. finished is False where it was interrupted: `tune(..., resume=True)` goes on.

    events: what the run told, in order; those with `event: progress` hold losses.
    """

    finished: bool
    adapters: tuple[Adapter, ...]
    folder: Path
    seconds: float
    cost_usd: float
    events: tuple[Event, ...] = field(repr=False)

    def __getitem__(self, name: str) -> Adapter:
        """The adapter of that name. Raises KeyError."""
        return {adapter.name: adapter for adapter in self.adapters}[name]

    def _repr_html_(self) -> str:
        published = {event["adapter"]: event for event in self.events if event["event"] == "published"}
        rows = [
            (adapter.id, adapter.task, event.get("best_step"), event.get("validation_loss"))
            for adapter in self.adapters
            for event in [published.get(adapter.id, {})]
        ]
        state = "tuned" if self.finished else "stopped: tune again with resume=True"
        caption = f"{state}, {self.seconds:.0f} s, {100 * self.cost_usd:.2f} cents, in {self.folder}"
        return table(("adapter", "task", "best step", "validation loss"), rows, caption)


def tune(
    fleet: AnyFleet,
    *,
    adapters: Sequence[str] = (),
    store: AnyPath | None = None,
    data_root: AnyPath | None = None,
    run_folder: AnyPath | None = None,
    resume: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Run:
    """Train the adapters of a fleet together, as `atoll tune` does.

    fleet: a Fleet, a fleet file, or the keys of one. adapters: only these. resume: go on from the run's checkpoint.
    on_event: called with everything that happens. An interrupt (in a notebook: stop) ends after the pass that is
    running, with a checkpoint; a second one ends at once. Raises AtollError with nothing half-written.
    """
    from atoll.training.tune import TuneRun

    chosen = as_fleet(fleet, adapters)
    opened = open_store(store)
    events: list[Event] = []

    def report(event: Event) -> None:
        events.append(event)
        if on_event is not None:
            on_event(event)

    run = TuneRun(
        chosen.config,
        run_folder=Path(run_folder or chosen.run_folder),
        store=opened,
        data_root=Path(data_root) if data_root is not None else None,
        report=report,
    )
    with _stopping(run):
        result = run.run(resume=resume)
    made = tuple(Adapter.of(stored, opened) for stored in result.adapters)
    return Run(result.finished, made, result.run_folder, result.seconds, result.cost_usd, tuple(events))


@contextmanager
def _stopping(run: TuneRun) -> Iterator[None]:
    """The first interrupt asks the run to stop, once there is something to keep; only the main thread can listen."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)

    def stop(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, previous)
        if not run.is_training:
            raise KeyboardInterrupt
        run.request_stop()

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
