"""What middleware sees of an answer."""

from __future__ import annotations

from starlette.types import Message, Send


class NotedSend:
    """An ASGI `send` that remembers the answer's status; None until the answer has begun."""

    def __init__(self, send: Send) -> None:
        self.status: int | None = None
        self._send = send

    async def __call__(self, message: Message) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
