"""Many requests at once: no answer depends on the others, and no client can hold what it no longer reads."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from atoll.adapters.catalog import AdapterCatalog
from atoll.adapters.peft_files import WEIGHTS_NAME
from atoll.server.app import create_app
from atoll.server.gateway import EventStream
from atoll.server.settings import ServerSettings
from support.adapters import save_random_adapter
from support.engines import make_world
from support.preparing import stuck_preparing
from support.servers import Served, publish_contracts, read_events, served_world, serving, wait_until
from support.tiny import make_model

MODELS = ["", "alpha", "beta", "gamma", "delta", "sentiment", "compare"]
PROMPTS = ["The quick brown fox", "user assistant", "SELECT name FROM users WHERE age > 30", "a"]
LONG = {"model": "alpha", "prompt": "x", "max_tokens": 480, "ignore_eos": True, "temperature": 0}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    """A server that a test may harm; two slots, so that adapters are evicted all the time."""
    settings = ServerSettings(max_open_requests=12)
    with served_world(tmp_path, settings=settings, num_slots=2, max_num_requests=8) as served:
        yield served


def is_idle(served: Served) -> bool:
    stats = served.engine.stats()
    return stats.num_running == stats.num_waiting == 0 and stats.num_free_blocks == stats.num_blocks


def raw_post(path: str, content: dict[str, Any]) -> bytes:
    """A request as bytes, for clients that behave badly."""
    body = json.dumps(content).encode()
    headers = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return f"POST {path} HTTP/1.1\r\n{headers}".encode() + body


def outcomes(served: Served, adapter: str) -> dict[str, float]:
    """How an adapter's requests ended, from the metrics."""
    prefix = f'atoll_requests_total{{adapter="{adapter}",outcome="'
    lines = [line for line in httpx.get(f"{served.url}/metrics").text.splitlines() if line.startswith(prefix)]
    return {line.removeprefix(prefix).split('"')[0]: float(line.split()[-1]) for line in lines}


def test_answers_do_not_depend_on_the_others(served: Served) -> None:
    asks: list[dict[str, Any]] = [
        {"model": model, "prompt": prompt, "max_tokens": 12, "extra_body": {"ignore_eos": True}} | sampling
        for model in MODELS
        for prompt in PROMPTS
        for sampling in ({"temperature": 0}, {"temperature": 1.5, "seed": 3})
    ]
    client = OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    alone = [client.completions.create(**ask).choices[0].text for ask in asks]

    async def together() -> list[str]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            answers = await asyncio.gather(*(client.completions.create(**ask) for ask in asks))
        return [answer.choices[0].text for answer in answers]

    assert asyncio.run(together()) == alone
    assert len(set(alone)) > len(asks) // 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_blocks(own: Served, stream: bool) -> None:
    with socket.create_connection(("127.0.0.1", int(own.url.rpartition(":")[2]))) as connection:
        connection.sendall(raw_post("/v1/completions", LONG | {"stream": stream}))
        wait_until(lambda: own.engine.stats().num_generated_tokens >= 3)
    wait_until(lambda: is_idle(own))
    assert own.engine.stats().num_generated_tokens < 400
    wait_until(lambda: outcomes(own, "alpha") == {"cancelled": 1})


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_an_answered_request_is_freed_without_the_garbage_collector(served: Served, path: str) -> None:
    body = {"inputs": "x", "parameters": {"max_new_tokens": 2}}
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            assert httpx.post(served.url + path, json=body).status_code == 200
        wait_until(lambda: not any(isinstance(found, EventStream) for found in gc.get_objects()))
    finally:
        gc.enable()


def test_a_full_house_answers_429_at_once(own: Served) -> None:
    async def crowd() -> tuple[list[int], httpx.Response]:
        async with httpx.AsyncClient(base_url=own.url, timeout=60, limits=httpx.Limits(max_connections=100)) as client:
            tasks = [asyncio.create_task(client.post("/v1/completions", json=LONG)) for _ in range(30)]
            done, waiting = set[asyncio.Task[httpx.Response]](), set(tasks)
            while len(done) < 18:
                ended, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                done |= ended
            refused = await client.post("/generate", json={"inputs": "x"})
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            return [task.result().status_code for task in done], refused

    statuses, refused = asyncio.run(crowd())
    assert statuses == [429] * 18
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error_type"] == "overloaded"
    wait_until(lambda: is_idle(own))
    answer = httpx.post(f"{own.url}/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 1}})
    assert answer.status_code == 200


def test_a_damaged_adapter_harms_only_its_own_requests(own: Served, tmp_path: Path) -> None:
    damaged = own.store.publish("damaged", save_random_adapter(tmp_path / "new", make_model(), seed=99))
    weights = damaged.folder / WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:-100])
    expected = {
        model: httpx.post(f"{own.url}/v1/completions", json={"model": model, "prompt": "x", "temperature": 0}).json()
        for model in MODELS
    }

    async def mixed() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=own.url, timeout=60) as client:
            body = {"prompt": "x", "temperature": 0}
            asks = [client.post("/v1/completions", json=body | {"model": model}) for model in (*MODELS, "damaged")]
            stream = client.post("/v1/completions", json=body | {"model": "damaged", "stream": True})
            lorax = client.post("/generate", json={"inputs": "x", "parameters": {"adapter_id": "damaged"}})
            return list(await asyncio.gather(*asks, stream, lorax))

    *good, bad, stream, lorax = asyncio.run(mixed())
    for model, answer in zip(MODELS, good, strict=True):
        assert answer.status_code == 200
        assert answer.json()["choices"] == expected[model]["choices"]
    assert (bad.status_code, bad.json()["error"]["code"]) == (400, "adapter_invalid")
    assert (stream.status_code, stream.json()["error"]["code"]) == (400, "adapter_invalid")
    assert (lorax.status_code, lorax.json()["error_type"]) == (424, "generation")
    assert outcomes(own, "damaged") == {"failed": 3}
    assert is_idle(own)


def test_a_stream_that_breaks_says_so(own: Served) -> None:
    client = OpenAI(base_url=f"{own.url}/v1", api_key="none", max_retries=0)
    fields: dict[str, Any] = LONG | {"extra_body": {"ignore_eos": True}}
    del fields["ignore_eos"]
    stream = client.completions.create(**fields, stream=True)
    next(stream)
    own.engine.close()
    with pytest.raises(openai.APIError, match="the server is stopping"):
        list(stream)
    assert httpx.get(f"{own.url}/health").status_code == 503
    assert httpx.post(f"{own.url}/generate", json={"inputs": "x"}).status_code == 500


def test_a_broken_lorax_stream_says_so(own: Served) -> None:
    parameters = {"max_new_tokens": 480, "ignore_eos_token": True}
    with httpx.stream("POST", f"{own.url}/generate_stream", json={"inputs": "x", "parameters": parameters}) as response:
        lines = response.iter_lines()
        text = next(lines)
        own.engine.close()
        last = read_events(text + "\n" + "\n".join(lines))[-1]
    assert last == {"error": "the server is stopping; send the request again", "error_type": "incomplete_generation"}


@pytest.mark.parametrize("max_unread", [8, 1024])
def test_a_reader_that_stops_reading_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_unread: int
) -> None:
    """While its answer grows, and where all of it is there already: nobody keeps a place among the open requests."""
    if max_unread > 480:
        monkeypatch.setattr("atoll.server.streaming.SEND_TIMEOUT_S", 1.0)
    world = make_world(tmp_path)
    store = publish_contracts(world, tmp_path)
    with world.engine() as engine, socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        settings = ServerSettings(max_unread_events=max_unread)
        app = create_app(engine, engine.base, AdapterCatalog(store), settings=settings)
        with serving(app, listener) as url, socket.socket() as client:
            served = Served(url, engine, world, store)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(listener.getsockname())
            parameters = {"max_new_tokens": 480, "ignore_eos_token": True, "return_k_alternatives": 20}
            client.sendall(raw_post("/generate_stream", {"inputs": "x", "parameters": parameters}))
            wait_until(lambda: outcomes(served, "base") == {"slow_reader": 1})
            wait_until(lambda: is_idle(served))
            assert max_unread > 480 or engine.stats().num_generated_tokens < 480
            other = httpx.post(f"{url}/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 2}})
            assert other.status_code == 200


def test_a_request_that_was_given_up_keeps_its_place_while_a_thread_works_on_it(tmp_path: Path) -> None:
    settings = ServerSettings(max_open_requests=2)
    with served_world(tmp_path, settings=settings) as served, stuck_preparing() as (has_begun, release):
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", httpx.URL(served.url).port or 0)) as client:
                client.sendall(raw_post("/generate", {"inputs": "x"}))
                assert has_begun.acquire(timeout=20)
        for _ in range(3):
            assert httpx.post(f"{served.url}/generate", json={"inputs": "x"}).status_code == 429
        release.set()
        wait_until(lambda: httpx.post(f"{served.url}/generate", json={"inputs": "x"}).status_code == 422)
