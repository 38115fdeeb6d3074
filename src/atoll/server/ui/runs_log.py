"""What a run's events say: how far each adapter is, what it costs, and the points of its curves."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from atoll.server.ui.file_cache import FileCache
from atoll.training.events import EVENTS_NAME, read_events

MAX_POINTS = 1200
"""Points that an adapter's curves may have; more of them are thinned out, the older ones as much as the newer."""

MAX_LOGS = 64
_MAX_ADAPTERS = 256
_SPEED_WINDOW_S = 60.0
_HEAD_BYTES = 512

Event = Mapping[str, Any]
Point = tuple[float, int, float | None, float | None, float, float, int]
"""time (unix seconds), step, loss, validation loss where it is new, learning rate, gradient norm, tokens so far."""


@dataclass
class AdapterState:
    """One adapter of a run, as its latest event left it. Losses: mean token losses in nats."""

    name: str
    task: str = ""
    num_examples: int = 0
    step: int = 0
    total_steps: int = 0
    planned_tokens: float = 0.0
    num_tokens: int = 0
    loss: float | None = None
    validation_loss: float | None = None
    best_loss: float | None = None
    learning_rate: float = 0.0
    grad_norm: float = 0.0
    is_done: bool = False
    adapter_id: str = ""
    cost_usd: float | None = None
    points: list[Point] = field(default_factory=list)

    @property
    def share_done(self) -> float:
        """From 0 to 1, by steps."""
        return 1.0 if self.is_done else min(1.0, self.step / self.total_steps) if self.total_steps else 0.0

    def thin(self) -> None:
        """Drop every second point where there are too many; what validation said stays."""
        if len(self.points) > 2 * MAX_POINTS:
            last = len(self.points) - 1
            self.points = [p for i, p in enumerate(self.points) if i % 2 == 0 or p[3] is not None or i == last]


@dataclass
class RunState:
    """All adapters of a run. started_at, latest_at: unix seconds of the first and the latest event, 0 if there is none.

    seconds, cost_usd: of training so far, also before it was stopped and resumed; quoted ones: of the whole run.
    """

    base: str = ""
    adapters: dict[str, AdapterState] = field(default_factory=dict)
    started_at: float = 0.0
    latest_at: float = 0.0
    seconds: float = 0.0
    cost_usd: float = 0.0
    quoted_seconds: float | None = None
    quoted_usd: float | None = None
    error: str = ""
    is_finished: bool = False
    _recent: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def num_tokens(self) -> int:
        return sum(adapter.num_tokens for adapter in self.adapters.values())

    @property
    def share_done(self) -> float:
        """From 0 to 1: each adapter's steps, weighted by the tokens that it plans to pass."""
        weights = [max(1.0, adapter.planned_tokens) for adapter in self.adapters.values()]
        done = sum(w * a.share_done for w, a in zip(weights, self.adapters.values(), strict=True))
        return done / sum(weights) if weights else 0.0

    @property
    def tokens_per_s(self) -> float | None:
        """Over the latest minute; None until there are two passes."""
        if len(self._recent) < 2 or self._recent[-1][0] <= self._recent[0][0]:
            return None
        (first_at, first), (last_at, last) = self._recent[0], self._recent[-1]
        return (last - first) / (last_at - first_at)

    @property
    def remaining_s(self) -> float | None:
        """Until the last adapter has passed all its tokens, at the speed of the latest minute."""
        speed = self.tokens_per_s
        if not speed or self.is_finished:
            return None
        open_adapters = [a for a in self.adapters.values() if not a.is_done]
        return sum(max(0.0, a.planned_tokens * (1 - a.share_done)) for a in open_adapters) / speed

    def without_points(self) -> RunState:
        """A copy that stays as it is, and has no curves."""
        adapters = {name: replace(adapter, points=[]) for name, adapter in self.adapters.items()}
        return replace(self, adapters=adapters, _recent=deque(self._recent))

    def note_speed(self, at: float) -> None:
        """Remember how many tokens had been passed at a time."""
        self._recent.append((at, self.num_tokens))
        while self._recent[-1][0] - self._recent[0][0] > _SPEED_WINDOW_S and len(self._recent) > 2:
            self._recent.popleft()


class RunLog:
    """The state of one run's folder, kept up to date by reading only what is new; safe in all threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._offset = 0
        self._head = b""
        self._folding = _Folding()

    def refresh(self) -> RunState:
        """The state by now; what is returned changes with the next call. Raises DataError for a damaged file."""
        with self._lock:
            return self._refresh()

    def outline(self) -> RunState:
        """The state by now, without its curves; it does not change any more. Raises DataError for a damaged file."""
        with self._lock:
            return self._refresh().without_points()

    def points_after(self, time: float) -> dict[str, list[Point]]:
        """Each adapter's points that are younger than a time (unix seconds)."""
        with self._lock:
            return {
                name: [point for point in adapter.points if point[0] > time]
                for name, adapter in self._folding.state.adapters.items()
            }

    def _refresh(self) -> RunState:
        head = self._read_head()
        # A new run begins the file again, and may have written more than the old one by now.
        if not head.startswith(self._head):
            self._offset, self._folding = 0, _Folding()
        self._head = head
        while True:
            events, offset = read_events(self._folder, self._offset)
            self._folding.add(events)
            if offset == self._offset:
                return self._folding.state
            self._offset = offset

    def _read_head(self) -> bytes:
        try:
            with (self._folder / EVENTS_NAME).open("rb") as file:
                return file.read(_HEAD_BYTES)
        except FileNotFoundError:
            return b""


class RunLogs:
    """The logs of the runs that were looked at lately, and of many more runs what lists need.

    A log is a few hundred kilobytes an adapter, nearly all of it curves. max_outlines: of how many runs lists are made.
    """

    def __init__(self, max_outlines: int) -> None:
        self._outlines: FileCache[RunState] = FileCache(max_outlines)
        self._lock = threading.Lock()
        self._logs: OrderedDict[Path, RunLog] = OrderedDict()

    def of(self, folder: Path) -> RunLog:
        """The log of a run's folder."""
        with self._lock:
            log = self._logs.setdefault(folder, RunLog(folder))
            self._logs.move_to_end(folder)
            while len(self._logs) > MAX_LOGS:
                self._logs.popitem(last=False)
            return log

    def outline(self, folder: Path) -> RunState:
        """A run's state by now, without its curves. Raises DataError for a damaged file."""
        try:
            return self._outlines.get(folder / EVENTS_NAME, lambda: self.of(folder).outline())
        except FileNotFoundError:
            return RunState()


class _Folding:
    """Takes events one by one. A run that is started again begins anew; one that is resumed goes on with its curves."""

    def __init__(self) -> None:
        self.state = RunState()
        self._before = RunState()

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            try:
                self._add(event)
            except (KeyError, TypeError, ValueError, AttributeError):
                continue  # another version wrote it, and the rest may still be of use

    def _add(self, event: Event) -> None:
        kind, at = event["event"], float(event.get("time") or 0.0)
        if kind == "start":
            self._before, self.state = self.state, RunState(started_at=at)
        state = self.state
        state.latest_at = max(state.latest_at, at)
        match kind:
            case "start":
                for name in event["adapters"]:
                    self._adapter(name)
            case "base":
                state.base = str(event["name"])
            case "data":
                adapter = self._adapter(event["adapter"])
                adapter.task, adapter.num_examples = str(event["task"]), int(event["num_examples"])
            case "plan":
                adapter = self._adapter(event["adapter"])
                adapter.total_steps, adapter.planned_tokens = int(event["total_steps"]), float(event["planned_tokens"])
            case "resumed":
                self._take_over()
            case "progress":
                self._progress(self._adapter(event["name"]), event, at)
            case "published":
                self._published(event)
            case "quote":
                quote = event["quote"]
                state.quoted_seconds = float(quote["seconds"]["expected"])
                state.quoted_usd = float(quote["cost_usd"]["expected"])
            case "failed":
                state.error = str(event["error"])
            case "end":
                state.is_finished = bool(event["finished"])
                self._spent(event)

    def _adapter(self, name: Any) -> AdapterState:
        if not isinstance(name, str) or (name not in self.state.adapters and len(self.state.adapters) >= _MAX_ADAPTERS):
            raise ValueError("no adapter's name")
        return self.state.adapters.setdefault(name, AdapterState(name))

    def _take_over(self) -> None:
        self.state.started_at = self._before.started_at or self.state.started_at
        for name, before in self._before.adapters.items():
            if name in self.state.adapters:
                self.state.adapters[name].points = before.points

    def _progress(self, adapter: AdapterState, event: Event, at: float) -> None:
        state = self.state
        if not all(math.isfinite(value) for value in event.values() if isinstance(value, float)):
            raise ValueError("no number that could be drawn")
        loss, validation = event["step_loss"], event["validation_loss"]
        is_new_step = int(event["step"]) > adapter.step or not adapter.points
        is_new_validation = validation is not None and validation != adapter.validation_loss
        adapter.step, adapter.total_steps = int(event["step"]), int(event["total_steps"])
        adapter.num_tokens = int(event["num_tokens"])
        adapter.loss, adapter.validation_loss = loss, validation
        if validation is not None:
            adapter.best_loss = min(validation, adapter.best_loss if adapter.best_loss is not None else validation)
        adapter.learning_rate, adapter.grad_norm = float(event["learning_rate"]), float(event["grad_norm"])
        adapter.is_done = bool(event["finished"])
        state.note_speed(at)
        self._spent(event)
        if (is_new_step or is_new_validation) and loss is not None:
            # Steps after a checkpoint are done again by the run that is resumed from it.
            while adapter.points and adapter.points[-1][1] >= adapter.step:
                adapter.points.pop()
            adapter.points.append(
                (at, adapter.step, float(loss), float(validation) if is_new_validation else None,
                 adapter.learning_rate, adapter.grad_norm, adapter.num_tokens)
            )  # fmt: skip
            adapter.thin()

    def _spent(self, event: Event) -> None:
        self.state.seconds, self.state.cost_usd = float(event["seconds"]), float(event["cost_usd"])

    def _published(self, event: Event) -> None:
        adapter = self._adapter(str(event["adapter"]).partition("@")[0])
        adapter.adapter_id, adapter.is_done = str(event["adapter"]), True
        adapter.cost_usd = float(event["cost_usd"])
