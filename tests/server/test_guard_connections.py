"""Connections that are slow, large or too many, against a real server."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from atoll.model.load import load_base
from atoll.server.connections import protocol_for
from atoll.server.settings import ServerSettings
from support.guarded import Guarded, guarded_server
from support.servers import serving, wait_until

JSON = {"Content-Type": "application/json"}
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


def send_until_closed(connection: socket.socket, part: bytes) -> None:
    """Fails where the server goes on reading."""
    try:
        for _ in range(10_000):
            connection.sendall(part)
    except OSError:
        pass
    else:
        pytest.fail("the server reads all that comes")


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


def test_a_head_that_does_not_end_is_refused(guarded: Guarded) -> None:
    with connect(guarded.url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        time.sleep(0.05)
        connection.sendall(b"x" * 5000)  # just beyond the limit
        assert read_to_end(connection).startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("after", [b"0\r\nX: ", b"5;name="], ids=["trailer", "extension"])
def test_what_stands_around_the_chunks_of_a_body_is_bounded(
    guarded: Guarded, use: dict[str, str], after: bytes
) -> None:
    with connect(guarded.url) as connection:
        connection.sendall(head(use, "Content-Type: application/json", "Transfer-Encoding: chunked") + after)
        started_s = time.monotonic()
        send_until_closed(connection, b"x" * 1024)
        assert time.monotonic() - started_s < 0.25  # not by the limit of the body's time


def test_a_body_in_chunks_of_a_byte_is_read(guarded: Guarded, use: dict[str, str]) -> None:
    body = json.dumps(ASK) + " " * 3000
    answer = httpx.post(f"{guarded.url}/generate", content=(byte.encode() for byte in body), headers=use | JSON)
    assert answer.status_code == 200


def test_a_trailer_is_no_header(guarded: Guarded, use: dict[str, str]) -> None:
    """A key after the body would come too late to be checked."""
    with connect(guarded.url) as connection:
        (name, key), *_ = use.items()
        lines = ("Content-Type: application/json", "Transfer-Encoding: chunked", "Connection: close")
        body = json.dumps(ASK)
        chunk = f"{len(body):x}\r\n{body}\r\n0\r\n{name}: {key}\r\n\r\n"
        connection.sendall(head({}, *lines) + chunk.encode())
        assert read_to_end(connection).startswith(b"HTTP/1.1 401")


def test_a_length_and_chunks_at_once_are_refused(guarded: Guarded, use: dict[str, str]) -> None:
    """Two servers in a row could see two ends."""
    with connect(guarded.url) as connection:
        lines = ("Content-Type: application/json", "Content-Length: 4", "Transfer-Encoding: chunked")
        connection.sendall(head(use, *lines) + b"0\r\n\r\n")
        assert read_to_end(connection).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("behind", [b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000, b"garbage " * 1000])
def test_what_comes_before_the_answer_is_not_read(guarded: Guarded, use: dict[str, str], behind: bytes) -> None:
    with connect(guarded.url) as connection:
        body = json.dumps(ASK).encode()
        lines = head(use, "Content-Type: application/json", f"Content-Length: {len(body)}")
        connection.sendall(lines + body + behind)
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_who_leaves_is_noticed_also_behind_a_second_request(guarded: Guarded, use: dict[str, str]) -> None:
    num_aborted = guarded.engine.num_aborted
    guarded.engine.pause_s = 0.05
    try:
        body = json.dumps(ASK | {"parameters": {"max_new_tokens": 100}}).encode()
        lines = head(use, "Content-Type: application/json", f"Content-Length: {len(body)}")
        with connect(guarded.url) as connection:
            connection.sendall(lines + body + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            time.sleep(0.2)
        wait_until(lambda: guarded.engine.num_aborted > num_aborted)
    finally:
        guarded.engine.pause_s = 0.0


def test_it_is_no_proxy(guarded: Guarded) -> None:
    with connect(guarded.url) as connection:
        connection.sendall(b"CONNECT l:1 HTTP/1.1\r\nHost: l\r\n\r\n" + b"x" * 100_000)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400")


def test_a_trailer_is_bounded_whatever_the_body_was(guarded: Guarded) -> None:
    """Also behind a refusal, when nobody reads the body."""
    chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n0\r\nX: "
    with connect(guarded.url) as connection:
        connection.sendall(head({}, "Transfer-Encoding: chunked") + chunk)
        started_s = time.monotonic()
        send_until_closed(connection, b"x" * 1024)
        assert time.monotonic() - started_s < 0.25


def test_who_is_refused_before_the_body_need_not_send_it(guarded: Guarded) -> None:
    with connect(guarded.url) as connection:
        connection.sendall(head({}, "Expect: 100-continue", "Content-Length: 34"))
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"connection: close" in answer


def test_an_address_that_is_too_long_is_refused(guarded: Guarded) -> None:
    assert httpx.get(f"{guarded.url}/health?{'x' * 5000}").status_code == 431


def test_an_offer_of_another_protocol_is_left_alone(guarded: Guarded, use: dict[str, str]) -> None:
    """As Java's HTTP client makes it with its first request."""
    with connect(guarded.url) as connection:
        body = json.dumps(ASK)
        lines = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk")
        length = ("Content-Type: application/json", f"Content-Length: {len(body)}")
        connection.sendall(head(use, *lines, *length) + body[:5].encode())
        connection.sendall(body[5:].encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert read_to_end(connection).startswith(b"HTTP/1.1 200")


@contextmanager
def big_answer(num_bytes: int) -> Iterator[socket.socket]:
    """A client's connection to a server that has sent it more than the buffers of both can take."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", str(num_bytes).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * num_bytes})

    with socket.socket() as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with serving(app, listener, http=protocol_for(ServerSettings(unread_timeout_s=0.2)), lifespan="off"):
            client.settimeout(20)
            client.connect(listener.getsockname())
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            yield client


@pytest.mark.parametrize("num_bytes", [40_000, 1_000_000], ids=["little", "much"])
def test_an_answer_that_nobody_reads_does_not_hold_a_connection(num_bytes: int) -> None:
    with big_answer(num_bytes) as client:
        time.sleep(1.0)
        assert read_to_end(client).count(b"x") < num_bytes


def test_an_answer_that_is_read_slowly_comes_to_its_end() -> None:
    with big_answer(200_000) as client:
        content = b""
        while part := client.recv(8192):
            content += part
            time.sleep(0.03)  # some 0.7 s in all
    assert content.count(b"x") == 200_000


def test_connections_beyond_the_limit_are_closed_at_once(guarded: Guarded) -> None:
    connections = [connect(guarded.url) for _ in range(60)]
    try:
        refused = [read_to_end(connection) for connection in connections[40:]]
        assert all(answer.startswith(b"HTTP/1.1 503") for answer in refused if answer)
        assert sum(answer.startswith(b"HTTP/1.1 503") for answer in refused) >= 10
    finally:
        for connection in connections:
            connection.close()
    wait_until(lambda: httpx.get(f"{guarded.url}/health").status_code == 200)
