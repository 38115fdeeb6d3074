"""The engine as others use it: thread-safe requests in front of one thread that runs the steps."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import SimpleQueue
from types import TracebackType
from typing import Literal

from atoll.adapters.bank import AdapterBank
from atoll.adapters.store import StoredAdapter
from atoll.adapters.tiers import TieredAdapter
from atoll.engine.core import EngineConfig, EngineCore, EngineStats
from atoll.engine.request import Completion, ErrorEvent, Event, FinishEvent, Request, TokenEvent
from atoll.engine.sizing import choose_num_slots
from atoll.errors import AtollError, RequestInvalid
from atoll.kernels.cores import Cores
from atoll.kernels.openmp import in_passing_thread
from atoll.model.fuse import fuse
from atoll.model.load import BaseModel

IDLE_POLL_S = 0.5

logger = logging.getLogger(__name__)


class Engine:
    """Completes prompts for the base model and many adapters, mixed in every batch.

    `start` gives the engine a thread of its own; `generate` works with and without it. Only the step that is under way
    may touch the model and its bank: train or change slots while no request is running.
    """

    def __init__(self, base: BaseModel, *, bank: AdapterBank, config: EngineConfig | None = None) -> None:
        self.base = base
        self.config = config or EngineConfig()
        self._core = EngineCore(base, bank, self.config, on_loaded=self._wake)
        self._condition = threading.Condition()
        self._inbox: deque[tuple[Request, float] | str] = deque()  # a request and when it came, or an id to abort
        self._is_awake = False
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._turn_lock = threading.Lock()
        self._stats = self._core.stats()

    @property
    def max_length(self) -> int:
        """Tokens that a prompt and its completion can have together."""
        return self._core.max_length

    @property
    def is_alive(self) -> bool:
        """Whether the step thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the step thread; a second call changes nothing."""
        with self._condition:
            self._check_open()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="atoll-engine", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End what is running with a FinishEvent "abort", and the thread; a second call changes nothing."""
        with self._condition:
            if self._is_closed:
                return
            self._is_closed = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join()
        with self._turn_lock:
            self._take_inbox()
            self._core.close()
            self._stats = self._core.stats()

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, request: Request) -> None:
        """Queue a request; its events come from the step thread. Raises RequestInvalid if it can never run."""
        self._core.check(request)
        with self._condition:
            self._check_open()
            self._inbox.append((request, time.perf_counter()))
            self._condition.notify_all()

    def abort(self, request_id: str) -> None:
        """Ask for a request's end; it gets a FinishEvent "abort" unless it ends before.

        Unknown ids are ignored, as is everything once the engine is closed: `close` has ended all requests.
        """
        with self._condition:
            self._inbox.append(request_id)
            self._condition.notify_all()

    def generate(
        self, requests: Sequence[Request], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Completion]:
        """Complete all requests and return in their order; a request that fails or is invalid has its `error` set.

        Their own `on_event` is called as well. on_progress(num_done, num_requests) is called in this thread. When this
        is interrupted the requests are aborted.
        """
        events: SimpleQueue[Event] = SimpleQueue()
        tokens: dict[str, list[TokenEvent]] = {request.request_id: [] for request in requests}
        if len(tokens) < len(requests):
            raise RequestInvalid("two requests have the same id", where="request_id")
        done: dict[str, Completion] = {}
        try:
            for request in requests:
                self._submit_collected(request, events)
            while len(done) < len(requests):
                while events.empty() and self._thread is None:
                    self._turn()
                event = events.get()
                if isinstance(event, TokenEvent):
                    tokens[event.request_id].append(event)
                    continue
                done[event.request_id] = _completion(event, tokens[event.request_id])
                if on_progress is not None:
                    on_progress(len(done), len(requests))
        except BaseException:
            for request_id in tokens.keys() - done.keys():
                self.abort(request_id)
            raise
        return [done[request.request_id] for request in requests]

    def pin(self, adapter: StoredAdapter) -> None:
        """Load an adapter and keep it, or newer revisions that are asked for, on the device until `unpin`.

        Raises UsageError if no slot would be left.
        """
        self._core.pin(adapter)

    def unpin(self, name: str) -> None:
        """Let an adapter be evicted again; does nothing if it is not pinned."""
        self._core.unpin(name)

    def adapters(self) -> list[TieredAdapter]:
        """The adapters on the device, then those in host memory alone; each least recently used first."""
        return self._core.adapters()

    def stats(self) -> EngineStats:
        """How things stood after the latest step, with everybody who has come since among the waiting."""
        stats = self._stats
        with self._condition:
            num_new = sum(not isinstance(item, str) for item in self._inbox)
        return replace(stats, num_waiting=stats.num_waiting + num_new)

    def _submit_collected(self, request: Request, events: SimpleQueue[Event]) -> None:
        def on_event(event: Event) -> None:
            events.put(event)
            request.on_event(event)

        try:
            self.submit(replace(request, on_event=on_event))
        except RequestInvalid as error:
            events.put(ErrorEvent(request_id=request.request_id, error=error))

    def _check_open(self) -> None:
        if self._is_closed:
            raise AtollError("the engine is closed")

    def _wake(self) -> None:
        with self._condition:
            self._is_awake = True
            self._condition.notify_all()

    def _run(self) -> None:
        cores = Cores() if self.base.device.type == "cpu" else None
        while not self._is_closed:
            if cores is not None:
                cores.adapt()
            self._turn()

    def _turn(self) -> None:
        """Take what has come and run one step; sleep where there is nothing to compute."""
        with self._turn_lock:
            try:
                has_taken = self._take_inbox()
                self._is_awake = False
                has_worked = self._core.has_requests and self._core.step()
            except Exception as error:
                logger.exception("the engine failed outside of a batch")
                self._core.fail_all(error)
                has_taken = has_worked = True
            self._stats = self._core.stats()
        if not has_worked and not has_taken:
            self._sleep()

    def _sleep(self) -> None:
        """Until something comes; not for ever while adapters load."""
        with self._condition:
            timeout_s = IDLE_POLL_S if self._core.has_requests else None
            self._condition.wait_for(lambda: self._inbox or self._is_awake or self._is_closed, timeout_s)

    def _take_inbox(self) -> bool:
        """Whether anything had come."""
        has_taken = False
        while True:
            with self._condition:
                if not self._inbox:
                    return has_taken
                item = self._inbox.popleft()
            has_taken = True
            if isinstance(item, str):
                self._core.abort(item)
            else:
                self._core.add(*item)


@in_passing_thread
def build_engine(
    base: BaseModel,
    *,
    num_slots: int | None = None,
    max_rank: int = 64,
    bits: Literal[8] | None = None,
    config: EngineConfig | None = None,
) -> Engine:
    """An engine with a bank of its own. From then on `base.model` is the engine's alone: see model.fuse.

    num_slots: adapters on the device at once; None for one for each request that can run, as far as memory allows.
    bits 8: compute the base's linear layers in 8 bits.
    """
    if num_slots is None:
        max_num_requests = (config or EngineConfig()).max_num_requests
        num_slots = choose_num_slots(base, max_rank=max_rank, max_num_requests=max_num_requests)
    bank = AdapterBank(base.model, num_slots=num_slots, max_rank=max_rank)
    fuse(base.model, bits=bits)
    return Engine(base, bank=bank, config=config)


def _completion(event: FinishEvent | ErrorEvent, tokens: list[TokenEvent]) -> Completion:
    finish, error = (event, None) if isinstance(event, FinishEvent) else (None, event.error)
    return Completion(request_id=event.request_id, tokens=tuple(tokens), finish=finish, error=error)
