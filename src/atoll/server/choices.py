"""Several requests of the engine that answer one HTTP request together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from atoll.engine import FinishEvent, TokenEvent
from atoll.server.caller import Caller
from atoll.server.gateway import EventStream, Gateway
from atoll.server.prepare import Ask


class Choice(NamedTuple):
    """One answer, whole."""

    tokens: list[TokenEvent]
    finish: FinishEvent


class Choices:
    """The answers to one or several prompts, `per_prompt` of them to each. To be closed in any case."""

    def __init__(self, streams: Sequence[EventStream], per_prompt: int) -> None:
        self.overrun = asyncio.Event()
        self.per_prompt = per_prompt
        self.streams = list(streams)
        for stream in self.streams:
            if stream.overrun.is_set():
                self.overrun.set()
            stream.overrun = self.overrun  # one client reads them all

    @classmethod
    async def open(
        cls, gateway: Gateway, asks: Sequence[Ask], caller: Caller, per_prompt: int = 1, *, stream: bool
    ) -> Choices:
        """Start what answers `asks`. Raises as `Gateway.open` does; then nothing of it runs any more."""
        opened: list[EventStream] = []
        try:
            for ask in asks:
                opened += await gateway.open_several(ask, caller, per_prompt, stream=stream)
        except BaseException:
            for started in opened:
                started.close()
            raise
        return cls(opened, per_prompt)

    @property
    def num_cut_tokens(self) -> int:
        """The most tokens of a prompt that did not fit."""
        return max(stream.num_cut_tokens for stream in self.streams)

    async def collect(self) -> list[Choice]:
        """All answers, in order. Raises the AtollError of the first that failed."""
        return [Choice(*await stream.collect()) for stream in self.streams]

    async def events(self) -> AsyncGenerator[tuple[int, TokenEvent | FinishEvent], None]:
        """The events of all answers as they come, each with its answer's place. Raises the first AtollError."""
        if len(self.streams) == 1:
            async for event in self.streams[0]:
                yield 0, event
            return
        waiting = {asyncio.ensure_future(anext(stream)): place for place, stream in enumerate(self.streams)}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=waiting.__getitem__):
                    event = task.result()
                    place = waiting.pop(task)
                    if isinstance(event, TokenEvent):
                        waiting[asyncio.ensure_future(anext(self.streams[place]))] = place
                    yield place, event
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def close(self) -> None:
        """Stop what still runs; to be called once more does nothing."""
        for stream in self.streams:
            stream.close()
