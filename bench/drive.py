"""A closed loop around an engine: as many requests under way as there are callers, each timed token by token."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from queue import SimpleQueue

from atoll.adapters.store import StoredAdapter
from atoll.engine import (
    Engine,
    ErrorEvent,
    Event,
    FinishEvent,
    Request,
    SamplingParams,
    Timings,
    TokenEvent,
)
from atoll.errors import AtollError
from common import percentile


@dataclass
class Asked:
    """One request and the moments (time.perf_counter) of its tokens. timings is None where it failed."""

    adapter: StoredAdapter | None
    num_prompt: int
    tokens_s: list[float] = field(default_factory=list)
    timings: Timings | None = None
    error: AtollError | None = None

    @property
    def gaps_s(self) -> list[float]:
        return [later - moment for moment, later in pairwise(self.tokens_s)]


@dataclass(frozen=True)
class Trace:
    """Everything that a loop has seen, in the order of submission."""

    asked: list[Asked]
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Output tokens over the whole time."""
        return sum(len(item.tokens_s) for item in self.asked) / self.seconds

    def gap_s(self, share: float) -> float:
        """The gap between two tokens of a running request that `share` of all gaps do not exceed."""
        return percentile([gap for item in self.asked for gap in item.gaps_s], share)

    def decode_step_s(self) -> float:
        """The median gap once every request has its first token: steps without prompts, where all came at once."""
        begun = max(item.tokens_s[0] for item in self.asked)
        pairs = [pair for item in self.asked for pair in pairwise(item.tokens_s)]
        return percentile([later - moment for moment, later in pairs if moment >= begun], 0.5)

    def first_s(self, share: float) -> float:
        """The same of the time to the first token."""
        return percentile([item.timings.first_token_s for item in self.asked if item.timings], share)


Order = tuple[StoredAdapter | None, int, int]
"""What one request shall be: adapter, prompt tokens, output tokens."""


def run_closed(
    engine: Engine,
    orders: Iterable[Order],
    *,
    concurrency: int,
    seed: int,
    on_submit: Callable[[Request], None] = lambda _: None,
) -> Trace:
    """Keep `concurrency` requests under way until `orders` ends and all are answered. Prompts are random and new."""
    finished: SimpleQueue[None] = SimpleQueue()
    draw = random.Random(seed)
    vocab_size = int(engine.base.model.config.vocab_size)
    waiting: Iterator[Order] = iter(orders)
    asked: list[Asked] = []
    num_running = 0
    start = time.perf_counter()
    while True:
        while num_running < concurrency and (order := next(waiting, None)) is not None:
            item = Asked(order[0], order[1])
            request = _request(order, item, finished, [draw.randrange(vocab_size) for _ in range(order[1])])
            engine.submit(request)
            on_submit(request)
            asked.append(item)
            num_running += 1
        if not num_running:
            return Trace(asked, time.perf_counter() - start)
        finished.get()
        num_running -= 1


def raise_first_error(trace: Trace) -> None:
    """Raise the first request's error, if one has failed."""
    for item in trace.asked:
        if item.error is not None:
            raise item.error


def _request(order: Order, item: Asked, finished: SimpleQueue[None], prompt: list[int]) -> Request:
    def on_event(event: Event) -> None:
        match event:
            case TokenEvent():
                item.tokens_s.append(time.perf_counter())
            case FinishEvent():
                item.timings = event.timings
                finished.put(None)
            case ErrorEvent():
                item.error = event.error
                finished.put(None)

    adapter, _, num_new = order
    sampling = SamplingParams(max_new_tokens=num_new, ignore_eos=True)
    return Request(prompt_ids=tuple(prompt), sampling=sampling, adapter=adapter, on_event=on_event)


def zipf(count: int, exponent: float, num_draws: int, seed: int) -> list[int]:
    """Indices below `count`; index i comes with a weight of 1 / (i + 1) ** exponent."""
    weights = [1 / (index + 1) ** exponent for index in range(count)]
    return random.Random(seed).choices(range(count), weights, k=num_draws)
