"""Streams of several answers: what breaks one ends all, in words that clients know, and nothing keeps running."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from openai import OpenAI

from atoll.server.app import create_app
from atoll.server.settings import ServerSettings
from support.engines import make_world
from support.servers import Served, served_world, serving, wait_until
from support.stub import empty_catalog

MESSAGES: Any = [{"role": "user", "content": "x"}]
LONG: dict[str, Any] = {"max_tokens": 450, "n": 4, "seed": 1, "extra_body": {"ignore_eos": True}}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    """A server that a test may harm."""
    with served_world(tmp_path, settings=ServerSettings(max_open_requests=12), max_num_requests=8) as served:
        yield served


@pytest.fixture
def client(own: Served) -> OpenAI:
    return OpenAI(base_url=f"{own.url}/v1", api_key="none", max_retries=0, timeout=60)


def is_idle(served: Served) -> bool:
    stats = served.engine.stats()
    return stats.num_running == stats.num_waiting == 0 and stats.num_free_blocks == stats.num_blocks


def test_a_broken_chat_says_so_in_the_stream(own: Served, client: OpenAI) -> None:
    stream = client.chat.completions.create(model="alpha", messages=MESSAGES, stream=True, **LONG)
    next(stream)
    own.engine.close()
    with pytest.raises(openai.APIError, match="the server is stopping") as broken:
        list(stream)
    assert broken.value.code == "interrupted"


def test_a_broken_response_ends_with_an_event_that_says_so(own: Served, client: OpenAI) -> None:
    # A pattern without an end: nothing but the length ends the answer.
    text: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "string", "minLength": 5000}}}
    stream = client.responses.create(model="alpha", input="x", text=text, stream=True)
    for event in stream:
        if event.type == "response.output_text.delta":
            break
    own.engine.close()
    last = list(stream)[-1]
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error is not None
    assert "the server is stopping" in last.response.error.message


def test_a_server_that_is_stopping_is_unavailable(own: Served, client: OpenAI) -> None:
    own.engine.close()
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model="alpha", prompt="x")


def test_a_client_that_leaves_ends_all_its_choices(own: Served, client: OpenAI) -> None:
    stream = client.chat.completions.create(model="alpha", messages=MESSAGES, stream=True, **LONG)
    next(stream)
    stream.close()
    wait_until(lambda: is_idle(own))
    assert client.completions.create(model="alpha", prompt="x", max_tokens=1).choices


def test_a_reader_that_stops_reading_loses_all_its_choices(tmp_path: Path) -> None:
    body = json.dumps({"prompt": "x", "n": 4, "max_tokens": 480, "ignore_eos": True, "logprobs": 20, "stream": True})
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    world = make_world(tmp_path)
    with world.engine() as engine, socket.socket() as listener, socket.socket() as reader:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        app = create_app(engine, engine.base, empty_catalog(tmp_path), settings=ServerSettings(max_unread_events=8))
        with serving(app, listener) as url:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(listener.getsockname())
            reader.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            wait_until(lambda: engine.stats().num_running == 4)
            wait_until(lambda: engine.stats().num_running == 0)
            assert engine.stats().num_generated_tokens < 4 * 480
            assert httpx.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 1}).status_code == 200


def test_choices_count_as_open_requests_and_none_is_left_over(own: Served, client: OpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as full:
        client.completions.create(model="alpha", prompt=["x"] * 4, n=4, max_tokens=2)
    assert full.value.response.headers["retry-after"]
    wait_until(lambda: is_idle(own))
    answer = client.completions.create(model="alpha", prompt=["x"] * 3, n=4, max_tokens=2)
    assert len(answer.choices) == 12


def test_one_prompt_that_is_wrong_ends_the_others(own: Served, client: OpenAI) -> None:
    prompts: Any = [[5, 6], [99_999]]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="vocabulary"):
            client.completions.create(model="alpha", prompt=prompts, max_tokens=400, stream=stream)
    wait_until(lambda: is_idle(own))
