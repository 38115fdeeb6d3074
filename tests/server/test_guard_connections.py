"""Connections that are slow, large or too many, against a real server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from atoll.model.load import load_base
from support.guarded import Guarded, guarded_server
from support.servers import wait_until

ASK = {"inputs": "Hello", "parameters": {"max_new_tokens": 2}}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> Iterator[Guarded]:
    base = load_base(str(tiny_base_folder), device="cpu", dtype="float32")
    with guarded_server(tmp_path_factory.mktemp("guarded"), base) as server:
        yield server


@pytest.fixture(scope="module")
def use(guarded: Guarded) -> dict[str, str]:
    return guarded.key()


def connect(url: str) -> socket.socket:
    return socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=20)


def head(key: dict[str, str], *lines: str) -> bytes:
    named = [f"{name}: {value}" for name, value in key.items()]
    return "\r\n".join(["POST /generate HTTP/1.1", "Host: localhost", *named, *lines, "", ""]).encode()


def read_to_end(connection: socket.socket) -> bytes:
    content = b""
    while part := connection.recv(65536):
        content += part
    return content


def test_a_body_that_does_not_come_is_not_waited_for(guarded: Guarded, use: dict[str, str]) -> None:
    with connect(guarded.url) as connection:
        connection.sendall(head(use, "Content-Type: application/json", "Content-Length: 1000") + b'{"inputs"')
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"did not come within" in answer


@pytest.mark.parametrize("sent", [b"", b"POST /generate HTT", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX"])
def test_a_head_that_does_not_come_is_not_waited_for(guarded: Guarded, sent: bytes) -> None:
    with connect(guarded.url) as connection:
        connection.sendall(sent)
        assert read_to_end(connection) == b""


def test_a_second_head_on_a_connection_has_its_time_too(guarded: Guarded) -> None:
    with connect(guarded.url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /health HT")
        assert b"HTTP/1.1" not in read_to_end(connection)


def test_a_slow_answer_is_not_a_slow_head(guarded: Guarded, use: dict[str, str]) -> None:
    guarded.engine.pause_s = 0.05
    try:
        body = ASK | {"parameters": {"max_new_tokens": 20}}
        assert httpx.post(f"{guarded.url}/generate", json=body, headers=use).status_code == 200
    finally:
        guarded.engine.pause_s = 0.0


def test_a_head_that_is_too_large_is_refused(guarded: Guarded) -> None:
    with connect(guarded.url) as connection:
        connection.sendall(head({}, *(f"X-{number}: {'x' * 100}" for number in range(100))))
        assert read_to_end(connection).startswith(b"HTTP/1.1 431")


def test_connections_beyond_the_limit_are_closed_at_once(guarded: Guarded) -> None:
    connections = [connect(guarded.url) for _ in range(60)]
    try:
        refused = [read_to_end(connection) for connection in connections[40:]]
        assert all(answer.startswith((b"HTTP/1.1 503", b"")) for answer in refused)
        assert sum(answer.startswith(b"HTTP/1.1 503") for answer in refused) >= 10
    finally:
        for connection in connections:
            connection.close()
    wait_until(lambda: httpx.get(f"{guarded.url}/health").status_code == 200)
