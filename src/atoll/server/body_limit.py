"""Reads a request's body before the application sees it, and refuses one that is too large."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atoll.server.errors import BodyTooLargeError, error_response

# A client that is answered while it still sends would see a broken connection instead of the answer, so some of what
# is too much is read and dropped.
_MAX_DROPPED_BODIES = 8


class BodyLimit:
    """ASGI middleware: bodies of at most `max_body_bytes`, told by length or not."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []
        num_bytes = 0
        more = True
        while more and num_bytes <= self._max_body_bytes * _MAX_DROPPED_BODIES:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            num_bytes += len(message.get("body", b""))
            more = message.get("more_body", False)
            if num_bytes <= self._max_body_bytes:
                messages.append(message)
            else:
                messages.clear()
        if num_bytes > self._max_body_bytes:
            error = BodyTooLargeError(f"the body is larger than {self._max_body_bytes} bytes")
            await error_response(scope["path"], error)(scope, receive, send)
            return
        replay = iter(messages)

        async def receive_again() -> Message:
            message = next(replay, None)
            return await receive() if message is None else message

        await self._app(scope, receive_again, send)
