"""HTTP connections that nobody can hold open or fill for nothing: uvicorn waits for ever and keeps what comes."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from atoll.server.settings import ServerSettings

_FULL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

_MAX_FRAME_BYTES = 8
"""For each byte of a body: one that comes in chunks of a byte each is six times as long."""


def protocol_for(settings: ServerSettings) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with limits: of connections, of a head's time and bytes, of an unread answer's time."""
    return type("Connection", (_Connection,), {"settings": settings})


class _Connection(HttpToolsProtocol):
    settings: ClassVar[ServerSettings]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_timer: asyncio.TimerHandle | None = None
        self._is_head_whole = False
        self._is_deaf = False
        """Whether what comes is dropped: the connection ends with the answer that is being given."""
        self._num_spare_bytes = self.settings.max_header_bytes
        """How much more may come that is no part of a body: of a head, or around the body's chunks."""
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        if len(self.connections) > self.settings.max_connections:
            self.transport.write(_FULL)
            self.transport.close()
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        self._num_spare_bytes -= len(data)
        self._parse(data)
        if self._num_spare_bytes < 0:
            self._refuse()
        if not self._is_between_requests():
            self._stop_waiting()
        elif self._head_timer is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._read_timer is not None:
            self._read_timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_reader()

    def on_message_begin(self) -> None:
        if not self._is_between_requests():  # one packet has room for thousands, and their client can leave unseen
            raise ValueError("a request before the answer to the last one")
        super().on_message_begin()
        self._is_head_whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_head_whole:  # what follows the body is not read
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_head_whole = True
        if not self.parser.should_upgrade():
            self._num_spare_bytes = self.settings.max_header_bytes  # a whole head is judged by the guard
            super().on_headers_complete()
            if self.expect_100_continue:  # who is refused before need not send the body that would be read here
                self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        num_frame_bytes = 0 if self.cycle.response_complete else _MAX_FRAME_BYTES * len(body)
        num_spare = self._num_spare_bytes + len(body) + num_frame_bytes
        self._num_spare_bytes = min(num_spare, self.settings.max_header_bytes)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._num_spare_bytes = self.settings.max_header_bytes
            super().on_message_complete()

    def _parse(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self.parser.get_method() == b"CONNECT":
                self.send_400_response("This is no proxy.")
            else:
                self._decline(data[offer.args[0] :])
        except httptools.HttpParserError:
            self._cannot_parse()

    def _cannot_parse(self) -> None:
        is_answering = not self._is_between_requests()
        if is_answering and not self.cycle.more_body:  # the request that is being answered came whole
            self._is_deaf = True
            self.cycle.keep_alive = False
        elif is_answering and self.cycle.response_started:
            self.transport.close()
        else:
            self.send_400_response("Invalid HTTP request received.")

    def _decline(self, rest: bytes) -> None:
        """Java's client offers HTTP/2 with its first request; the parser would take the body for that protocol."""
        fields = [b": ".join(field) for field in self.headers if field[0] not in (b"upgrade", b"http2-settings")]
        first = b" ".join((self.parser.get_method(), self.url, b"HTTP/" + self.parser.get_http_version().encode()))
        self.parser = httptools.HttpRequestParser(self)
        self._parse(b"\r\n".join((first, *fields, b"", rest)))

    def _refuse(self) -> None:
        if self._is_between_requests():
            self.transport.write(_TOO_LARGE)
        self.transport.close()

    def _await_reader(self) -> None:
        if self._read_timer is None:
            self._look_at_reader()

    def _look_at_reader(self, num_unread_before: int = 0) -> None:
        """Hang up on a client that has taken nothing since the last look; look again while there is something."""
        self._read_timer = None
        num_unread = self.transport.get_write_buffer_size()
        if num_unread and num_unread == num_unread_before:
            self.transport.abort()
        elif num_unread:
            self._read_timer = self.loop.call_later(self.settings.unread_timeout_s, self._look_at_reader, num_unread)

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.settings.head_timeout_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self._is_between_requests():
            self.transport.close()
