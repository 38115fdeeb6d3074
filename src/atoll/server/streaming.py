"""Server-sent events, and what happens when the client leaves or does not read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from atoll.errors import AtollError
from atoll.log import get_logger
from atoll.server.errors import error_body, to_atoll_error
from atoll.server.gateway import EventStream

T = TypeVar("T")
logger = get_logger(__name__)

DONE = b"data: [DONE]\n\n"
SEND_TIMEOUT_S = 30.0
"""A client that takes nothing for so long is cut off: unread streams hold their places among the open requests."""
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def frame(content: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def cut_header(events: EventStream) -> dict[str, str]:
    """Tells a client whose columns were longer than the adapter's contract allows."""
    return {"x-atoll-cut-tokens": str(events.num_cut_tokens)} if events.num_cut_tokens else {}


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do `work`; cancel it and raise ClientDisconnect if the client leaves before.

    As `asyncio.timeout` does it, with a departure for a deadline: `work` stays in the task that it is called in, since
    a task of its own and waiting for both is a tenth of what the server does for a request.
    """
    worker = asyncio.current_task()
    assert worker is not None
    num_cancelled = worker.cancelling()
    is_over = has_left = False

    def leave(watch: asyncio.Task[None]) -> None:
        nonlocal has_left
        if not is_over and not watch.cancelled():
            has_left = True
            worker.cancel()

    watch = asyncio.ensure_future(_departure(request.receive))
    watch.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if has_left and worker.uncancel() <= num_cancelled:
            raise ClientDisconnect from None
        raise
    finally:
        is_over = True
        watch.cancel()


class Reading(Protocol):
    """What a stream is made from: one request of the engine, or several."""

    overrun: asyncio.Event
    """Set when the client reads too slowly."""

    def close(self) -> None:
        """Stop what still runs; to be called once more does nothing."""


class EventStreamResponse(Response):
    """Sends frames while the engine makes them.

    The status is decided by the first event: a request that fails before its first token gets a plain error answer,
    one that fails later an error event in the stream. Closes `events` however it ends.
    """

    def __init__(self, events: Reading, frames: AsyncGenerator[bytes, None], headers: dict[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self.raw_headers = _HEADERS + [(name.encode(), value.encode()) for name, value in headers.items()]
        self._events = events
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _first(self._send(scope["path"], send), _disconnected(receive), self._events.overrun.wait())
        except ClientDisconnect:
            pass
        except TimeoutError:
            logger.warning("a stream is cut off: its client has read nothing for %.0f s", SEND_TIMEOUT_S)
            self._events.overrun.set()
        finally:
            self._events.close()
            await self._frames.aclose()

    async def _send(self, path: str, send_now: Send) -> None:
        async def send(message: Message) -> None:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send_now(message)

        first = await anext(self._frames)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        try:
            async for content in self._frames:
                await send({"type": "http.response.body", "body": content, "more_body": True})
        except AtollError as error:
            content = frame(error_body(path, to_atoll_error(error))[1])
            await send({"type": "http.response.body", "body": content, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _departure(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> Any:
    await _departure(receive)
    raise ClientDisconnect


async def _first(work: Coroutine[Any, Any, T], *others: Coroutine[Any, Any, Any]) -> T:
    """The result of `work`, or what the first of the others returns or raises; whatever still runs is cancelled."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in (work, *others)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        result: T = next(task for task in tasks if task in done).result()
        return result
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
