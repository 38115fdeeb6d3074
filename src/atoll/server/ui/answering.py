"""Several contenders answer one prompt at the same time, in one stream: the engine mixes them in its batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from atoll.engine import FinishEvent
from atoll.errors import AtollError, Overloaded
from atoll.log import get_logger
from atoll.server.caller import Caller
from atoll.server.errors import error_body, to_atoll_error
from atoll.server.gateway import EventStream, Gateway
from atoll.server.prepare import Ask
from atoll.server.streaming import frame

logger = get_logger(__name__)

_MAX_WAITING = 256


@dataclass(frozen=True)
class Column:
    """One contender's place on the page. label: what the page may call it by now."""

    name: str
    label: str
    ask: Ask


class Race:
    """Opens the asks and merges their events; what goes wrong with one is told in its own column.

    start: what the first event says besides the labels. on_end(column, end): hears of each whole answer.
    shows_figures: whether the ends hold times and counts.
    """

    def __init__(
        self,
        gateway: Gateway,
        caller: Caller,
        columns: Sequence[Column],
        *,
        start: dict[str, Any],
        on_end: Callable[[int, FinishEvent], None],
        shows_figures: bool = True,
    ) -> None:
        self.overrun = asyncio.Event()
        self._gateway = gateway
        self._caller = caller
        self._columns = columns
        self._start = start
        self._on_end = on_end
        self._shows_figures = shows_figures
        self._opened: list[EventStream] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_MAX_WAITING)

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events: `start`, then `text`, `end` and `error` of the columns, `done` at last."""
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(len(self._columns))]
        yield frame({"type": "start", "labels": [column.label for column in self._columns], **self._start})
        num_open = len(self._columns)
        while num_open:
            message = await self._waiting.get()
            num_open -= message["type"] != "text"
            yield frame(message)
        yield frame({"type": "done"})

    def close(self) -> None:
        """Stop what still runs: its blocks are free at the next step."""
        for task in self._tasks:
            task.cancel()
        for events in self._opened:
            events.close()

    async def _run(self, number: int) -> None:
        try:
            message = await self._answer(number)
        except AtollError as error:
            message = {"type": "error", "message": _text_of(error)}
        except Exception as error:
            logger.error("an answer on the page broke: %s", type(error).__name__)
            message = {"type": "error", "message": _text_of(AtollError(type(error).__name__))}
        await self._waiting.put({"column": number} | message)

    async def _answer(self, number: int) -> dict[str, Any]:
        events = await self._gateway.open(self._columns[number].ask, self._caller, stream=True)
        self._opened.append(events)
        watch = asyncio.create_task(self._watch(events))
        try:
            async for event in events:
                if isinstance(event, FinishEvent):
                    self._on_end(number, event)
                    cut = {"num_cut_tokens": events.num_cut_tokens}
                    return {"type": "end"} | (figures(event) | cut if self._shows_figures else {})
                if event.text:
                    await self._waiting.put({"column": number, "type": "text", "text": event.text})
        finally:
            watch.cancel()
            events.close()
        raise AtollError("the request ended without an answer")

    async def _watch(self, events: EventStream) -> None:
        await events.overrun.wait()
        self.overrun.set()


def figures(finish: FinishEvent) -> dict[str, Any]:
    """What an answer took; tokens_per_s is after the first token, None for a single one."""
    times, num_tokens = finish.timings, len(finish.token_ids)
    after_first_s = times.total_s - times.first_token_s
    return {
        "finish_reason": finish.finish_reason,
        "num_prompt_tokens": finish.num_prompt_tokens,
        "num_cached_tokens": finish.num_cached_tokens,
        "num_new_tokens": num_tokens,
        "first_token_s": round(times.first_token_s, 4),
        "total_s": round(times.total_s, 4),
        "tokens_per_s": round((num_tokens - 1) / after_first_s, 1) if num_tokens > 1 and after_first_s > 0 else None,
    }


def _text_of(error: AtollError) -> str:
    told = to_atoll_error(error)
    text = str(error_body("/ui", told)[1]["error"])
    return f"busy: {text}" if isinstance(told, Overloaded) else text
