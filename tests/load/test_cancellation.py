"""Requests that are aborted, and consumers that vanish, give back all that they hold and harm nobody."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from atoll.engine import Completion, Engine, EngineConfig, EngineStats, ErrorEvent, Event, FinishEvent, TokenEvent
from support.scale import scaled
from support.signed import MAX_RANK, Answers, Ask, SignedWorld
from support.stepping import Stepper

NUM_SLOTS = 4
BLOCK_SIZE = 4
CONFIG = EngineConfig(max_batch_tokens=64, max_num_requests=12, block_size=BLOCK_SIZE, max_length=512)


@pytest.fixture
def stepper(world: SignedWorld) -> Iterator[Stepper]:
    stepper = Stepper(world.load_base(), num_slots=NUM_SLOTS, max_rank=MAX_RANK, config=CONFIG)
    yield stepper
    stepper.close()


def assert_nothing_is_held(stats: EngineStats) -> None:
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_free_blocks == stats.num_blocks


def assert_every_slot_can_be_had(world: SignedWorld, engine: Engine) -> None:
    """As many new adapters as there are slots run side by side: nobody keeps a hold on a slot."""
    answers, rng = Answers(), random.Random(0)
    asks = [world.ask(name, rng, num_tokens=400, answers=answers) for name in world.names[-NUM_SLOTS:]]
    for ask in asks:
        engine.submit(ask.request)
    deadline_s = time.monotonic() + 20
    while engine.stats().num_running < NUM_SLOTS:
        assert not answers.ends, "one had to end before another could begin"
        assert time.monotonic() < deadline_s
        time.sleep(0.002)
    for ask in asks:
        engine.abort(ask.request.request_id)


def num_needed_blocks(ask: Ask, answers: Answers) -> int:
    num_tokens = len(ask.request.prompt_ids) + len(answers.tokens.get(ask.request.request_id, []))
    return -(-num_tokens // BLOCK_SIZE)


@pytest.mark.parametrize("seed", range(scaled(3, 30)))
def test_an_abort_gives_its_blocks_back_at_once(world: SignedWorld, stepper: Stepper, seed: int) -> None:
    rng, answers = random.Random(seed), Answers()
    names = [rng.choice([None, *world.names[:NUM_SLOTS]]) for _ in range(12)]
    asks = [world.ask(name, rng, num_tokens=100, answers=answers) for name in names]
    for ask in asks:
        stepper.submit(ask.request)
    for _ in range(rng.randint(1, 20)):
        stepper.step()
    while asks:
        aborted = asks.pop(rng.randrange(len(asks)))
        stepper.abort(aborted.request.request_id)
        answers.check(aborted)
        if asks:
            stepper.step()
        held = stepper.stats.num_blocks - stepper.stats.num_free_blocks
        assert held <= sum(num_needed_blocks(ask, answers) for ask in asks)
    assert_nothing_is_held(stepper.stats)


def test_an_abort_gives_its_slot_to_the_next_step(world: SignedWorld) -> None:
    """With one slot, a waiting adapter runs as soon as the running one's request is aborted."""
    stepper = Stepper(world.load_base(), num_slots=1, max_rank=MAX_RANK, config=CONFIG)
    rng, answers = random.Random(0), Answers()
    running, waiting = (world.ask(name, rng, num_tokens=400, answers=answers) for name in world.names[:2])
    stepper.submit(running.request)
    stepper.step()
    stepper.submit(waiting.request)
    stepper.step_while_adapters_load()
    assert waiting.request.request_id not in answers.tokens
    stepper.abort(running.request.request_id)
    before = stepper.stats.num_steps
    while waiting.request.request_id not in answers.tokens:
        stepper.step()
    assert stepper.stats.num_steps - before == 1
    stepper.close()


class Fickle(Answers):
    """Consumers of whom many abort their own request or another's after some tokens, or vanish."""

    def __init__(self, engine: Engine, rng: random.Random) -> None:
        super().__init__()
        self.vanished: set[str] = set()
        self.aborted_at: dict[str, int] = {}
        self.ended_at: dict[str, int] = {}
        self._engine = engine
        self._rng = rng

    def receive(self, event: Event) -> None:
        """Note the event, then do one of these things, or mostly nothing. Called from the step thread."""
        super().receive(event)
        if isinstance(event, TokenEvent) and event.request_id in self.vanished:
            self.late.append(event)
        elif not isinstance(event, TokenEvent):
            self.ended_at[event.request_id] = self._engine.stats().num_steps
        elif self._rng.random() < 0.03:
            self.vanished.add(event.request_id)
            raise ConnectionResetError("the client is gone")
        elif self._rng.random() < 0.06:
            victim = self._rng.choice([request_id for request_id in self.tokens if request_id not in self.ends])
            self.aborted_at.setdefault(victim, self._engine.stats().num_steps)
            self._engine.abort(victim)
        if not isinstance(event, TokenEvent) and self._rng.random() < 0.05:
            raise ConnectionResetError("the client is gone when the end comes")


def test_aborts_and_vanishing_consumers_under_load(world: SignedWorld) -> None:
    rng = random.Random(5)
    engine = world.engine(num_slots=NUM_SLOTS, config=CONFIG)
    consumers = Fickle(engine, rng)
    names = [rng.choice([None, *world.names[:10]]) for _ in range(scaled(300, 3000))]
    asks = [world.ask(name, rng, num_tokens=rng.randint(1, 30), answers=consumers) for name in names]
    engine.start()
    completions = engine.generate([ask.request for ask in asks])
    for ask, completion in zip(asks, completions, strict=True):
        tokens, request_id = list(completion.tokens), ask.request.request_id
        if request_id in consumers.vanished:
            assert isinstance(consumers.ends[request_id], ErrorEvent)
            assert completion.error is not None
            assert "the client is gone" in str(completion.error)
            ask.check(tokens, is_whole=False)
        else:
            assert isinstance(completion.finish, FinishEvent)
            is_aborted = completion.finish.finish_reason == "abort"
            assert not is_aborted or request_id in consumers.aborted_at
            ask.check(tokens, is_whole=not is_aborted)
    assert not consumers.late
    late = {i for i, step in consumers.aborted_at.items() if consumers.ended_at[i] > step + 1}
    assert not late, "an abort waited for more than a step"
    assert len(consumers.vanished) > len(asks) / 20 < len(consumers.aborted_at)
    assert_every_slot_can_be_had(world, engine)
    engine.close()
    stats = engine.stats()
    assert_nothing_is_held(stats)
    assert stats.num_failed == len(consumers.vanished)
    assert stats.num_finished == len(asks) - stats.num_failed + NUM_SLOTS


@pytest.mark.parametrize("is_threaded", [False, True])
def test_a_request_that_aborts_itself_ends_its_generation(world: SignedWorld, is_threaded: bool) -> None:
    """Also where no step follows, because there is nothing left to compute."""
    engine = world.engine(num_slots=1, config=CONFIG)
    if is_threaded:
        engine.start()
    ask = world.ask(None, random.Random(0), num_tokens=50)
    request = replace(ask.request, on_event=lambda event: engine.abort(event.request_id))
    done: list[Completion] = []
    thread = threading.Thread(target=lambda: done.extend(engine.generate([request])), daemon=True)
    thread.start()
    thread.join(5)
    assert done, "still waiting"
    assert done[0].finish is not None
    assert done[0].finish.finish_reason == "abort"
    engine.close()
