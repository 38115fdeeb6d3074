"""Reads a request's body before the application sees it, and refuses one that is too large or too slow."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atoll.server.caller import SCOPE_KEY
from atoll.server.errors import BodyTooLargeError, SlowBodyError, error_response
from atoll.server.settings import ServerSettings

# A client that is answered while it still sends would see a broken connection instead of the answer, so some of what
# is too much is read and dropped.
_MAX_DROPPED_BODIES = 8

MAX_STRANGER_BYTES = 4 << 10
"""Of a body to an address that needs no key, as the login."""

UPLOAD_PREFIX = "/ui/admin/uploads"
"""Files go to the disk as they come; the route has limits of its own."""


class BodyLimit:
    """ASGI middleware: bodies of at most `max_body_bytes`, told by length or not, that come in `body_timeout_s`.

    Whom the guard does not know may send `MAX_STRANGER_BYTES`.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_streamed = scope["type"] == "http" and scope["path"].startswith(UPLOAD_PREFIX)
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD") or is_streamed:
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                messages = await self._read(receive, self._max_bytes(scope))
        except (TimeoutError, BodyTooLargeError) as error:
            slow = SlowBodyError(f"the body did not come within {self._settings.body_timeout_s:g} seconds")
            refusal = error if isinstance(error, BodyTooLargeError) else slow
            await error_response(scope["path"], refusal)(scope, receive, send)
            return
        if messages is None:
            return
        replay = iter(messages)

        async def receive_again() -> Message:
            message = next(replay, None)
            return await receive() if message is None else message

        await self._app(scope, receive_again, send)

    def _max_bytes(self, scope: Scope) -> int:
        caller = scope.get(SCOPE_KEY)
        is_stranger = caller is None or not caller.scopes
        return min(MAX_STRANGER_BYTES, self._settings.max_body_bytes) if is_stranger else self._settings.max_body_bytes

    async def _read(self, receive: Receive, max_bytes: int) -> list[Message] | None:
        """The body's parts; None where the client has left. Raises BodyTooLargeError."""
        messages: list[Message] = []
        num_bytes = 0
        more = True
        while more and num_bytes <= max_bytes * _MAX_DROPPED_BODIES:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            num_bytes += len(message.get("body", b""))
            more = message.get("more_body", False)
            if num_bytes <= max_bytes:
                messages.append(message)
            else:
                messages.clear()
        if num_bytes > max_bytes:
            raise BodyTooLargeError(f"the body is larger than {max_bytes} bytes")
        return messages
