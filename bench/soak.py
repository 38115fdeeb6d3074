"""Endurance: minutes of mixed load with reloads and cancellations, and whether memory grows.

make bench-soak      or      .venv/bin/python bench/soak.py --minutes 5

Requests of many lengths, greedy and sampled, over more adapters than there are slots; one in ten is cancelled on its
way; every few seconds an adapter's name gets a new revision. The first fifth of the time warms up. Fails when the
resident memory of the last fifth is more than 2 % above that of the second fifth, when a request fails, or when a
block of the KV cache is missing at the end.
"""

from __future__ import annotations

import gc
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from atoll.adapters.store import AdapterStore, StoredAdapter
from atoll.engine import (
    Engine,
    EngineConfig,
    ErrorEvent,
    Event,
    FinishEvent,
    Request,
    SamplingParams,
    TokenEvent,
    build_engine,
)
from atoll.model.load import load_base
from common import machine, parser, print_table, quote, rss_bytes, say, work_folder, write_json
from made import base_config, linear_shapes, make_adapters

RANK = 16
NUM_SLOTS = 8
NUM_IN_MEMORY = 16
KV_CACHE_BYTES = 96 << 20
NUM_NAMES = 24
NUM_VERSIONS = 4
CONCURRENCY = 24
CANCELLED = 0.1
SAMPLE_S = 2.0
RELOAD_S = 5.0
MAX_GROWTH = 0.02
MAX_ERRORS = 100
HANGS_AFTER_S = 120
PHASES = 5


@dataclass
class Soak:
    """The load and what it has seen. Everything random is drawn from `draw`, on one thread."""

    engine: Engine
    store: AdapterStore
    versions: dict[str, list[Path]]
    draw: random.Random = field(default_factory=lambda: random.Random(0))
    ended: SimpleQueue[Event] = field(default_factory=SimpleQueue)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("finished", "cancelled", "failed", "reloads"), 0)
    )
    errors: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        """Keep CONCURRENCY requests under way for `seconds`, then let them end."""
        start = time.monotonic()
        next_sample = next_reload = 0.0
        num_running = 0
        while (now := time.monotonic() - start) < seconds or num_running:
            if len(self.errors) > MAX_ERRORS:
                return
            while now < seconds and num_running < CONCURRENCY:
                self._submit()
                num_running += 1
            self._take(self.ended.get(timeout=HANGS_AFTER_S))
            num_running -= 1
            if now >= next_reload:
                self._reload()
                next_reload = now + RELOAD_S
            if now >= next_sample:
                self.memory.append((now, rss_bytes()))
                next_sample = now + SAMPLE_S

    def _submit(self) -> None:
        draw = self.draw
        name = draw.choice([None, *self.versions])
        adapter = self.store.resolve(name) if name else None
        num_prompt = draw.choice((4, 16, 64, 200))
        stop_at = draw.randint(1, 12) if draw.random() < CANCELLED else None
        sampling = SamplingParams(
            max_new_tokens=draw.randint(1, 48),
            temperature=draw.choice((0.0, 0.8)),
            top_p=draw.choice((1.0, 0.9)),
            ignore_eos=True,
        )
        prompt = tuple(draw.randrange(self.engine.base.model.config.vocab_size) for _ in range(num_prompt))
        self.engine.submit(self._request(prompt, sampling, adapter, stop_at))

    def _request(
        self, prompt: tuple[int, ...], sampling: SamplingParams, adapter: StoredAdapter | None, stop_at: int | None
    ) -> Request:
        num_tokens = 0

        def on_event(event: Event) -> None:
            nonlocal num_tokens
            if not isinstance(event, TokenEvent):
                self.ended.put(event)
                return
            num_tokens += 1
            if num_tokens == stop_at:
                self.engine.abort(event.request_id)

        return Request(prompt_ids=prompt, sampling=sampling, adapter=adapter, on_event=on_event)

    def _take(self, event: Event) -> None:
        match event:
            case FinishEvent(finish_reason="abort"):
                self.counts["cancelled"] += 1
            case FinishEvent():
                self.counts["finished"] += 1
            case ErrorEvent(error=error):
                self.counts["failed"] += 1
                self.errors.append(str(error))

    def _reload(self) -> None:
        name = self.draw.choice(list(self.versions))
        self.store.publish(name, self.draw.choice(self.versions[name]))
        self.counts["reloads"] += 1


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=30.0, help="of load (30)")
    options.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    given = options.parse_args()
    seconds = 25.0 if given.quick else 60 * given.minutes
    facts = machine(quick=True)
    print(quote(facts), end="\n\n")
    with work_folder(given.work) as folder:
        soak = prepared(given.base, given.dtype, folder)
        say(f"{NUM_NAMES} adapters, {seconds:.0f} s")
        with soak.engine:
            soak.run(seconds)
            gc.collect()
            stats = soak.engine.stats()
    growth = grown(soak.memory, seconds)
    missing = stats.num_blocks - stats.num_free_blocks
    rows = [(name, count) for name, count in soak.counts.items()]
    rows += [(name, getattr(stats, name)) for name in ("num_steps", "num_generated_tokens", "num_preemptions")]
    rows += [(name, getattr(stats.tiers, name)) for name in ("num_loads", "num_slot_evictions")]
    print_table(["", "count"], rows)
    before_mb, after_mb = growth["before"] / 1e6, growth["after"] / 1e6
    print(
        f"resident memory: {before_mb:.0f} MB after the warm-up, {after_mb:.0f} MB at the end: {growth['share']:+.1%}"
    )
    print(f"(at most {MAX_GROWTH:+.0%}); blocks of the KV cache in use at the end: {missing}")
    write_json(given.json, {"machine": facts, "counts": soak.counts, "growth": growth, "memory": soak.memory})
    for error in sorted(set(soak.errors))[:5]:
        print(f"failed: {error}")
    is_good = not soak.counts["failed"] and not missing and (given.quick or growth["share"] <= MAX_GROWTH)
    print("passed" if is_good else "FAILED")
    return int(not is_good)


def prepared(base: str, dtype: Any, folder: Path) -> Soak:
    """An engine and a store with NUM_NAMES adapters, each of which can change between NUM_VERSIONS contents."""
    shapes = linear_shapes(base_config(base))
    made = make_adapters(folder / "made", shapes, NUM_NAMES * NUM_VERSIONS, rank=RANK, dtype=torch.bfloat16)
    store = AdapterStore(folder / "store")
    versions = dict(zip((f"a{index}" for index in range(NUM_NAMES)), _chunks(made), strict=True))
    for name, folders in versions.items():
        store.publish(name, folders[0])
    # Small tiers, full before the warm-up ends: what grows after that is a leak.
    config = EngineConfig(
        max_num_requests=CONCURRENCY,
        max_length=256,
        kv_cache_bytes=KV_CACHE_BYTES,
        host_adapter_bytes=NUM_IN_MEMORY * made[0].size_bytes,
    )
    engine = build_engine(load_base(base, dtype=dtype), num_slots=NUM_SLOTS, max_rank=RANK, config=config)
    return Soak(engine, store, versions)


def grown(memory: list[tuple[float, int]], seconds: float) -> dict[str, float]:
    """Medians of the second and of the last fifth, and by which share memory has grown between them."""

    def phase(index: int) -> float:
        inside = [rss for moment, rss in memory if index <= PHASES * moment / seconds < index + 1]
        return statistics.median(inside or [memory[-1][1]])

    before, after = phase(1), phase(PHASES - 1)
    return {"before": before, "after": after, "share": after / before - 1}


def _chunks(made: list[StoredAdapter]) -> Iterator[list[Path]]:
    for start in range(0, len(made), NUM_VERSIONS):
        yield [adapter.folder for adapter in made[start : start + NUM_VERSIONS]]


if __name__ == "__main__":
    sys.exit(main())
