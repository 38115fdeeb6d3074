"""Work ends where its client leaves, and whoever called it goes on undisturbed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from atoll.server.streaming import unless_disconnected


def request_of(left: asyncio.Event) -> Request:
    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


async def sleeping() -> None:
    await asyncio.sleep(60)


def test_a_departure_cancels_the_work_alone() -> None:
    async def main() -> None:
        left = asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, left.set)
        with pytest.raises(ClientDisconnect):
            await unless_disconnected(request_of(left), sleeping())
        await asyncio.sleep(0.01)  # would be cancelled now

    asyncio.run(main())


def test_a_departure_at_the_works_end_disturbs_nothing() -> None:
    async def main() -> None:
        left = asyncio.Event()

        async def work() -> str:
            left.set()
            await asyncio.sleep(0)
            return "done"

        for _ in range(3):
            assert await unless_disconnected(request_of(left), work()) == "done"
            await asyncio.sleep(0.01)

    asyncio.run(main())


@pytest.mark.parametrize("num_turns", range(4))
def test_another_cancellation_stays_one(num_turns: int) -> None:
    """Also one that comes with a departure, as when the server stops."""

    async def main() -> None:
        left = asyncio.Event()
        task = asyncio.ensure_future(unless_disconnected(request_of(left), sleeping()))
        await asyncio.sleep(0.01)
        left.set()
        for _ in range(num_turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, ClientDisconnect)):
            await task
        assert task.cancelled() or num_turns > 1  # else it had ended before

    asyncio.run(main())


def test_what_the_work_raises_is_raised() -> None:
    async def main() -> None:
        async def work() -> None:
            raise ValueError("from the work")

        with pytest.raises(ValueError, match="from the work"):
            await unless_disconnected(request_of(asyncio.Event()), work())

    asyncio.run(main())
