"""Slots are scarce: whoever has the turn gets one, however many others go on asking for what is in it."""

from __future__ import annotations

import random
import time
from dataclasses import replace

from atoll.engine import EngineConfig
from support.signed import MAX_RANK, Answers, SignedWorld
from support.stepping import Stepper

CONFIG = EngineConfig(max_batch_tokens=64, max_num_requests=4, max_length=512)


def test_a_flood_that_never_ends_gives_its_slot_away(world: SignedWorld) -> None:
    """New requests for the adapter in the only slot arrive faster than any of them ends."""
    rng, answers = random.Random(0), Answers()
    flooded, quiet = world.names[:2]
    with world.engine(num_slots=1, config=CONFIG) as engine:
        for _ in range(100):
            engine.submit(world.ask(flooded, rng, num_tokens=8).request)
        ask = world.ask(quiet, rng, num_tokens=8, answers=answers)
        engine.submit(ask.request)
        deadline_s = time.monotonic() + 6
        while not answers.ends and time.monotonic() < deadline_s:
            engine.submit(world.ask(flooded, rng, num_tokens=8).request)
            time.sleep(0.005)
        assert answers.ends, f"{engine.stats().num_waiting} requests wait"
    answers.check(ask)


def test_an_aborted_request_that_never_ran_keeps_no_slot(world: SignedWorld) -> None:
    stepper = Stepper(world.load_base(), num_slots=1, max_rank=MAX_RANK, config=replace(CONFIG, max_num_requests=1))
    rng, answers = random.Random(0), Answers()
    names = world.names[0], world.names[1], world.names[0]
    running, waiting, gone = (world.ask(name, rng, num_tokens=400, answers=answers) for name in names)
    stepper.submit(running.request)
    stepper.step()
    stepper.submit(waiting.request)
    stepper.step_while_adapters_load()
    stepper.submit(gone.request)
    stepper.step()
    aborted_at_s = time.monotonic()
    for ask in (gone, running):
        stepper.abort(ask.request.request_id)
    while waiting.request.request_id not in answers.tokens:
        stepper.step()
    stepper.close()
    assert time.monotonic() - aborted_at_s < 0.5
