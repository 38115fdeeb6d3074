"""A provider of the OpenAI interface on this machine, with every way to misbehave that real ones have shown."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.hubs import reply
from support.listening import listening

Behaviour = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def completion(body: dict[str, Any], text: str | None, **fields: Any) -> dict[str, Any]:
    """A whole answer, as the interface promises it."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    choice |= {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
    usage = {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}
    return {"id": "1", "model": body["model"], "choices": [choice], "usage": usage} | fields


def says(text: str | None, **fields: Any) -> Behaviour:
    return lambda handler, body: send(handler, completion(body, text, **fields))


def fails(status: int, message: str = "no", headers: dict[str, str] | None = None, **error: Any) -> Behaviour:
    content = json.dumps({"error": {"message": message, **error}}).encode()
    return lambda handler, body: reply(handler, status, content, {"Content-Type": "application/json"} | (headers or {}))


def sends(content: bytes) -> Behaviour:
    return lambda handler, body: reply(handler, 200, content, {"Content-Type": "application/json"})


def send(handler: BaseHTTPRequestHandler, content: Any) -> None:
    reply(handler, 200, json.dumps(content).encode(), {"Content-Type": "application/json"})


def cuts_body(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """Half of an answer, then the connection ends."""
    content = json.dumps(completion(body, "label 1")).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


def drops(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """No answer at all: the connection ends."""
    handler.close_connection = True


@dataclass
class FakeProvider:
    """Behaves as `script` says for its first requests, then as `usual`; `asked` are the bodies, in their order.

    release: set when a request that `hangs` may end.
    """

    usual: Behaviour = field(default_factory=lambda: says("label 1"))
    script: list[Behaviour] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    max_at_once: int = 0
    url: str = ""
    _num_now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def hangs(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.release.wait(60)

    def prompts(self) -> list[str]:
        """What each request asked, as one text."""
        return [json.dumps(body.get("messages", body.get("prompt"))) for body in self.asked]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            behave = self.script.pop(0) if self.script else self.usual
            self.asked.append(body)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.paths.append(handler.path)
            self._num_now += 1
            self.max_at_once = max(self.max_at_once, self._num_now)
        try:
            behave(handler, body)
        finally:
            with self._lock:
                self._num_now -= 1


@contextmanager
def fake_provider(*script: Behaviour, usual: Behaviour | None = None) -> Iterator[FakeProvider]:
    """Run a provider in a thread; its `url` ends in /v1."""
    provider = FakeProvider(script=list(script))
    if usual is not None:
        provider.usual = usual

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            provider.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with listening(Handler) as url:
        provider.url = f"{url}/v1"
        try:
            yield provider
        finally:
            provider.release.set()
