"""Hours of load leave nothing behind: live tensors and Python objects are counted, round after round."""

from __future__ import annotations

import gc
import logging
import random
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from atoll.engine import Engine, EngineConfig, Event
from support.scale import scaled
from support.signed import MEAN_ADAPTER_BYTES, Answers, SignedWorld

NUM_ROUNDS = scaled(15, 150)
NUM_WARM_UP = NUM_ROUNDS // 3
NUM_REQUESTS = 40
NUM_ABORTED = 5
NUM_SETTLERS = 12
# Small enough that blocks, slots and host memory are all full after a few rounds.
CONFIG = EngineConfig(
    max_batch_tokens=64,
    max_num_requests=8,
    block_size=4,
    max_length=128,
    kv_cache_bytes=400_000,
    host_adapter_bytes=6 * MEAN_ADAPTER_BYTES,
)


# What is counted, and by how much it goes up and down where caches fill and are emptied.
COUNTED = {"live tensors": 24, "live objects": 120, "blocks of Python's allocator, strings and numbers among them": 300}


@pytest.fixture
def engine(world: SignedWorld) -> Iterator[Engine]:
    """Nothing that was there before is counted, nor log records, which pytest keeps until the end."""
    logging.disable(logging.CRITICAL)
    with world.engine(num_slots=4, config=CONFIG) as engine:
        run_round(world, engine, -1)
        gc.collect()
        gc.freeze()
        yield engine
        gc.unfreeze()
    logging.disable(logging.NOTSET)


def take_census() -> tuple[int, int, int]:
    """The three counts of COUNTED."""
    gc.collect()
    num_blocks = sys.getallocatedblocks()
    objects = gc.get_objects()
    return sum(isinstance(thing, torch.Tensor) for thing in objects), len(objects), num_blocks


def run_round(world: SignedWorld, engine: Engine, seed: int) -> None:
    """A bit of everything that can leave something behind: reloads, evictions, aborts, vanished consumers.

    In the end always the same adapters are in slots and host memory, so that about the same is alive by right.
    """
    rng, answers = random.Random(seed), Answers()
    names = [name for name in world.zipf_names(rng, 2 * NUM_REQUESTS) if name not in world.names[-NUM_SETTLERS:]]
    world.publish(names[0])
    asks = [world.ask(name, rng, answers=answers) for name in names[:NUM_REQUESTS]]
    for ask in asks[:NUM_ABORTED]:
        engine.submit(ask.request)
        engine.abort(ask.request.request_id)
    gone = replace(asks[-1].request, on_event=vanish)
    completions = engine.generate([*(ask.request for ask in asks[NUM_ABORTED:-1]), gone])
    assert [completion.error is None for completion in completions] == [True] * (len(completions) - 1) + [False]
    for ask in asks[:-1]:
        answers.check(ask)
    for name in world.names[-NUM_SETTLERS:]:
        engine.generate([world.ask(name, rng).request])


def vanish(event: Event) -> None:
    raise ConnectionResetError("the client is gone")


def test_nothing_grows(world: SignedWorld, engine: Engine) -> None:
    """The highest counts of the late rounds are not above those of the earlier ones."""
    counts = np.zeros((NUM_ROUNDS, len(COUNTED)), dtype=int)
    for seed in range(NUM_ROUNDS):
        run_round(world, engine, seed)
        counts[seed] = take_census()
    early, late = counts[NUM_WARM_UP : 2 * NUM_WARM_UP].max(0), counts[2 * NUM_WARM_UP :].max(0)
    for index, (name, fluctuation) in enumerate(COUNTED.items()):
        # One thing left behind by each round, be it by one reload or by one failure, adds a third of the rounds.
        assert late[index] - early[index] < NUM_ROUNDS / 6 + fluctuation, f"{name}: {counts[:, index].tolist()}"
