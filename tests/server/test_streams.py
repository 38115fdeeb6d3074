"""Five hundred streams at once: no token is lost, doubled, reordered or somebody else's."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2 as httpx

from atoll.engine import Engine
from atoll.server.settings import ServerSettings
from atoll.text.prompt import encode_text
from support.engines import World, greedy_request
from support.servers import Served, served_world

NUM_STREAMS = 500
MAX_NEW_TOKENS = 24
NAMES: tuple[str | None, ...] = (None, "alpha", "beta", "gamma", "delta")


def test_five_hundred_streams_at_once(tmp_path: Path) -> None:
    limits = {"num_slots": 3, "max_num_requests": 32, "max_batch_tokens": 256}
    settings = ServerSettings(max_open_requests=NUM_STREAMS)
    with served_world(tmp_path, settings=settings, **limits) as served:
        prompts = [f"{seed} quick {'brown fox ' * (seed % 5)}" for seed in range(NUM_STREAMS)]
        names = [NAMES[seed % len(NAMES)] for seed in range(NUM_STREAMS)]
        num_new = [1 + seed % MAX_NEW_TOKENS for seed in range(NUM_STREAMS)]
        expected = alone(served.engine, served.world, prompts, names)
        answers = asyncio.run(stream_all(served, prompts, names, num_new))
        for index, frames in enumerate(answers):
            token_ids = tuple(frame["token"]["id"] for frame in frames)
            assert token_ids == expected[index][: num_new[index]], f"stream {index}"
            assert [frame["generated_text"] is not None for frame in frames] == [False] * (len(frames) - 1) + [True]
            assert frames[-1]["generated_text"] == "".join(frame["token"]["text"] for frame in frames)
        assert served.engine.stats().num_failed == 0


def alone(engine: Engine, world: World, prompts: list[str], names: list[str | None]) -> list[tuple[int, ...]]:
    """What each request gets from the engine itself, asked one after the other in small groups."""
    tokenizer = engine.base.tokenizer
    requests = [
        greedy_request(tuple(encode_text(tokenizer, prompt)), MAX_NEW_TOKENS, world.adapters[name] if name else None)
        for prompt, name in zip(prompts, names, strict=True)
    ]
    groups = [requests[start : start + 25] for start in range(0, len(requests), 25)]
    return [completion.token_ids for group in groups for completion in engine.generate(group)]


async def stream_all(
    served: Served, prompts: list[str], names: list[str | None], num_new: list[int]
) -> list[list[dict[str, Any]]]:
    limits = httpx.Limits(max_connections=NUM_STREAMS)
    async with httpx.AsyncClient(base_url=served.url, limits=limits, timeout=300) as client:

        async def stream(index: int) -> list[dict[str, Any]]:
            parameters = {"adapter_id": names[index] or "", "max_new_tokens": num_new[index], "ignore_eos_token": True}
            body = {"inputs": prompts[index], "parameters": parameters}
            async with client.stream("POST", "/generate_stream", json=body) as response:
                assert response.status_code == 200, await response.aread()
                lines = [line async for line in response.aiter_lines()]
            return [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]

        return list(await asyncio.gather(*(stream(index) for index in range(NUM_STREAMS))))
