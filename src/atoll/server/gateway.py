"""Between the dialects and the engine: open requests, and their events across threads."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import anyio

from atoll.adapters.catalog import AdapterCatalog
from atoll.engine import ErrorEvent, Event, FinishEvent, Request, TokenEvent
from atoll.errors import AtollError, Overloaded
from atoll.log import get_logger
from atoll.server.access import note
from atoll.server.adapter_use import AdapterUse
from atoll.server.caller import Caller
from atoll.server.errors import InterruptedRequestError
from atoll.server.meter import Meter, Outcome, Spent
from atoll.server.metrics import ServerMetrics
from atoll.server.open_requests import OpenRequests
from atoll.server.prepare import Ask, Prepared, Preparer
from atoll.server.settings import ServerSettings
from atoll.server.tracing import note_finish

if TYPE_CHECKING:
    from atoll.adapters.store import StoredAdapter
    from atoll.adapters.tiers import TieredAdapter
    from atoll.engine import EngineStats
    from atoll.model.load import BaseModel

logger = get_logger(__name__)

# Tokenising and reading contracts run beside the event loop, few at a time: they compete with the steps for cores.
_NUM_PREPARING = 4
# Downloads and mixes of adapters take seconds: they have threads of their own, and no tenant has all of these.
_NUM_FETCHING = 8
_NUM_FETCHING_PER_TENANT = 4


class RequestEngine(Protocol):
    """What the server needs of an engine."""

    @property
    def max_length(self) -> int:
        """Tokens that a prompt and its completion can have together."""

    @property
    def is_alive(self) -> bool:
        """Whether submitted requests are worked on."""

    def submit(self, request: Request) -> None:
        """Queue a request. Raises RequestInvalid."""

    def abort(self, request_id: str) -> None:
        """Forget a request."""

    def pin(self, adapter: StoredAdapter) -> None:
        """Load an adapter and keep it on the device. Raises UsageError if no slot would be left."""

    def unpin(self, name: str) -> None:
        """Let an adapter be evicted again."""

    def stats(self) -> EngineStats:
        """Figures of this moment."""

    def adapters(self) -> Sequence[TieredAdapter]:
        """The adapters on the device and in host memory."""


class EventStream:
    """The events of one request, on the event loop. Iterate once, and close in any case: closing frees what it holds.

    The engine's step thread calls `push`. When more than `max_unread` events wait, the reader is too slow: `overrun` is
    set and the request ends, so that nobody's unread text fills the memory. validation_s: what preparing took.
    """

    def __init__(
        self,
        gateway: Gateway,
        prepared: Prepared,
        index: int,
        caller: Caller,
        *,
        max_unread: int | None,
        validation_s: float,
    ) -> None:
        self.overrun = asyncio.Event()
        self.num_cut_tokens = prepared.num_cut_tokens
        self.request = prepared.request(index, caller, _pusher(weakref.ref(self)))
        self.caller = caller
        self.validation_s = validation_s
        self._gateway = gateway
        self._max_unread = max_unread
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._arrival: asyncio.Future[None] | None = None
        self._is_closed = False
        self._outcome: Outcome = "cancelled"
        self._num_tokens = 0
        self._first_token_at_s = self._token_at_s = 0.0

    def push(self, event: Event) -> None:
        """Take an event from another thread."""
        self._loop.call_soon_threadsafe(self._receive, event)

    def _receive(self, event: Event) -> None:
        if self._is_closed or self.overrun.is_set():
            return
        if self._max_unread is not None and len(self._events) >= self._max_unread:
            logger.warning("request %s is cut off: its client does not read", event.request_id)
            self.overrun.set()
            return
        if isinstance(event, TokenEvent):
            now_s = time.perf_counter()
            if self._num_tokens:
                self._gateway.metrics.token_came(now_s - self._token_at_s)
            else:
                self._first_token_at_s = now_s
            self._token_at_s = now_s
            self._num_tokens += 1
        self._events.append(event)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> TokenEvent | FinishEvent:
        """The next token, then the end. Raises the request's AtollError."""
        if self._outcome in ("ok", "failed"):
            raise StopAsyncIteration
        while not self._events:
            self._arrival = self._loop.create_future()
            await self._arrival
        event = self._events.popleft()
        if isinstance(event, ErrorEvent):
            self._outcome = "failed"
            raise event.error
        if isinstance(event, FinishEvent):
            if event.finish_reason == "abort":
                self._outcome = "failed"
                raise InterruptedRequestError("the server is stopping", mend="send the request again")
            self._outcome = "ok"
            self._gateway.finished(self, event)
        return event

    async def collect(self) -> tuple[list[TokenEvent], FinishEvent]:
        """Everything at once. Raises the request's AtollError."""
        tokens: list[TokenEvent] = []
        async for event in self:
            if isinstance(event, FinishEvent):
                return tokens, event
            tokens.append(event)
        raise InterruptedRequestError("the request ended without an answer")

    def close(self) -> None:
        """Stop the request if it still runs; to be called once more does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        is_cut_off = self._outcome == "cancelled" and self.overrun.is_set()
        self._gateway.closed(self, "slow_reader" if is_cut_off else self._outcome)

    def spent(self, finish: FinishEvent | None, outcome: Outcome) -> Spent:
        """What the request has used; `finish` is its end where it was answered."""
        adapter = self.request.adapter
        has_begun = self._num_tokens > 0
        since_first_token_s = time.perf_counter() - self._first_token_at_s if has_begun else 0.0
        num_prompt_tokens = len(self.request.prompt_ids) if finish or has_begun else 0
        return Spent(
            caller=self.caller,
            adapter=adapter.name if adapter else "",
            outcome=outcome,
            num_prompt_tokens=num_prompt_tokens,
            num_cached_tokens=finish.num_cached_tokens if finish else 0,
            num_new_tokens=len(finish.token_ids) if finish else self._num_tokens,
            seconds=finish.timings.total_s - finish.timings.queue_s if finish else since_first_token_s,
        )


def _pusher(stream: weakref.ref[EventStream]) -> Callable[[Event], None]:
    """What a stream's request knows of it. If each held the other, only the garbage collector would end them."""

    def push(event: Event) -> None:
        if (reader := stream()) is not None:
            reader.push(event)

    return push


class Gateway:
    """Takes asks from the dialects, on the event loop."""

    def __init__(
        self,
        engine: RequestEngine,
        base: BaseModel,
        catalog: AdapterCatalog,
        settings: ServerSettings,
        metrics: ServerMetrics,
        meter: Meter | None = None,
    ) -> None:
        self.base = base
        self.settings = settings
        self.catalog = catalog
        self.metrics = metrics
        self.use = AdapterUse()
        self.open_requests = OpenRequests(settings.max_open_requests)
        self.preparer = Preparer(
            base, catalog, settings, max_length=engine.max_length, max_rank=engine.stats().max_rank
        )
        self.special_ids = frozenset(base.tokenizer.all_special_ids)
        self.max_length = engine.max_length
        self._engine = engine
        self._meter = meter
        self._limiter = anyio.CapacityLimiter(_NUM_PREPARING)
        self._slow_limiter = anyio.CapacityLimiter(_NUM_FETCHING)
        self._slow_limiters: weakref.WeakValueDictionary[str, anyio.CapacityLimiter] = weakref.WeakValueDictionary()

    @property
    def is_alive(self) -> bool:
        """Whether requests are worked on."""
        return self._engine.is_alive

    async def open(self, ask: Ask, caller: Caller, *, stream: bool) -> EventStream:
        """Start a request; its events end in the result, which whoever asked must close.

        Raises Overloaded, RequestInvalid, AdapterNotFound and what else is wrong with the ask.
        """
        return (await self.open_several(ask, caller, 1, stream=stream))[0]

    async def open_several(self, ask: Ask, caller: Caller, count: int, *, stream: bool) -> list[EventStream]:
        """Start `count` requests that are alike but for their seeds; each is to be closed. Raises as `open` does."""
        try:
            self.open_requests.admit(caller.tenant, count)
        except Overloaded as error:
            self.metrics.refused(error.code)
            raise
        started_s = time.perf_counter()
        opened: list[EventStream] = []
        try:
            prepared = await self._prepare(ask, caller)
            if self._meter is not None:
                self._meter.admit(caller, len(prepared.prompt_ids) * count)
            validation_s = time.perf_counter() - started_s
            max_unread = self.settings.max_unread_events if stream else None
            for index in range(count):
                events = EventStream(self, prepared, index, caller, max_unread=max_unread, validation_s=validation_s)
                self._engine.submit(events.request)
                opened.append(events)
        except BaseException as error:
            self.open_requests.remove(caller.tenant, count - len(opened))
            for events in opened:
                events.close()
            self.metrics.refused(error.code if isinstance(error, AtollError) else "cancelled")
            raise
        return opened

    def unload(self, name: str) -> None:
        """Know an adapter no more until it is restored or loaded again, and unpin it. Raises AdapterNotFound."""
        self.catalog.unload(name)
        self._engine.unpin(name)

    async def _prepare(self, ask: Ask, caller: Caller) -> Prepared:
        if self.preparer.is_quick(ask):  # quicker than handing it to another thread
            return self.preparer.prepare(ask, caller)
        work = asyncio.ensure_future(self._prepare_in_thread(ask, caller))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # A thread cannot be stopped: as long as it works on, it keeps its place among threads and open requests.
            self.open_requests.add(caller.tenant, 1)
            work.add_done_callback(partial(self._abandoned_ended, caller.tenant))
            raise

    async def _prepare_in_thread(self, ask: Ask, caller: Caller) -> Prepared:
        run = partial(anyio.to_thread.run_sync, self.preparer.prepare, ask, caller)
        if not self.preparer.is_slow(ask):
            return await run(limiter=self._limiter)
        # Without keys everybody is one tenant, which may have all. A limiter lives for as long as somebody is in it.
        most = _NUM_FETCHING_PER_TENANT if caller.tenant else _NUM_FETCHING
        async with self._slow_limiters.setdefault(caller.tenant, anyio.CapacityLimiter(most)):
            return await run(limiter=self._slow_limiter)

    def _abandoned_ended(self, tenant: str, work: asyncio.Future[Prepared]) -> None:
        self.open_requests.remove(tenant, 1)
        if not work.cancelled() and (error := work.exception()) is not None:
            logger.debug("a request that was given up: %s", error)

    def finished(self, events: EventStream, finish: FinishEvent) -> None:
        """A request has been answered; its last event is not out yet. Called by the stream alone."""
        self.metrics.finished(events.request, finish, events.validation_s)
        note_finish(events.request, finish, self.base.name)
        self._count(events.spent(finish, "ok"))

    def closed(self, events: EventStream, outcome: Outcome) -> None:
        """A stream has ended; called by the stream alone."""
        self.open_requests.remove(events.caller.tenant, 1)
        if outcome != "ok":
            self._count(events.spent(None, outcome))
        self.metrics.ended(events.request, outcome)
        if events.request.adapter is not None:
            self.use.note(events.request.adapter.id, events.caller.tenant)
        if outcome in ("cancelled", "slow_reader"):
            self._engine.abort(events.request.request_id)

    def _count(self, spent: Spent) -> None:
        note(spent)
        if self._meter is not None:
            self._meter.ended(spent)
