"""Exchange: a thousand adapters on disk, few in memory, fewer in slots, asked for with Zipf's frequencies.

make bench-exchange      or      .venv/bin/python bench/exchange.py --concurrency 64

The same engine serves the same requests twice a round: once over as many adapters as it has slots, all resident, and
once over all of them. Adapters have rank 8 on all linear layers in bf16, 4.9 MB each for SmolLM2-135M, so that a
thousand of them take 5 GB of disk; each file has bytes of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch

from atoll.adapters.peft_io import read_adapter
from atoll.adapters.store import StoredAdapter
from atoll.engine import Engine, EngineConfig, Timings, build_engine
from atoll.model.load import load_base
from common import machine, parser, percentile, print_table, quote, rss_bytes, say, work_folder, write_json
from drive import Asked, Order, Trace, raise_first_error, run_closed, zipf
from goals import at_most, goal
from made import base_config, forget_pages, linear_shapes, make_adapters

MAX_NUM_REQUESTS = 32
EXPONENT = 1.1
NUM_ALONE = 12


@dataclass(frozen=True)
class Shape:
    """Sizes of one measurement. num_alone: cold adapters that are asked for with nothing else running."""

    num_adapters: int
    num_in_memory: int
    num_slots: int
    num_requests: int
    num_prompt: int = 96
    num_new: int = 32
    num_alone: int = NUM_ALONE


def main() -> int:
    options = parser(__doc__, rounds=3)
    options.add_argument("--adapters", type=int, default=1000)
    options.add_argument("--in-memory", type=int, default=64, help="adapters that host memory has room for (64)")
    options.add_argument("--slots", type=int, default=16)
    options.add_argument("--rank", type=int, default=8)
    options.add_argument("--requests", type=int, default=384, help="in each half of a round (384)")
    options.add_argument("--concurrency", type=int, default=32, help="requests that are there at any moment (32)")
    options.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    given = options.parse_args()
    shape = Shape(given.adapters, given.in_memory, given.slots, given.requests)
    if given.quick:
        shape = Shape(24, 8, 4, 24, num_prompt=32, num_new=6, num_alone=3)
    num_rounds = 1 if given.quick else given.rounds
    facts = machine(quick=given.quick)
    print(quote(facts), end="\n\n")
    with work_folder(given.work) as folder:
        shapes = linear_shapes(base_config(given.base))
        adapters = make_adapters(folder, shapes, shape.num_adapters, rank=given.rank, dtype=torch.bfloat16)
        size = adapters[0].size_bytes
        say(f"{len(adapters)} adapters, {size * len(adapters) / 1e9:.2f} GB on disk")
        forget_pages(adapters)
        with started(given, shape, size) as engine:
            # Taken from the far end, which Zipf's draws hardly reach: nobody has read them before.
            cold = [alone(engine, adapters[-seed], shape, -seed) for seed in range(1, shape.num_alone + 1)]
            read_s = statistics.median(map(read_seconds, adapters[-2 * shape.num_alone : -shape.num_alone]))
            rounds = [one_round(engine, adapters, shape, given.concurrency, index) for index in range(num_rounds)]
            stats = engine.stats()
    results = summary(rounds, cold, read_s, {adapter.digest for adapter in adapters[: shape.num_slots]})
    report(results, shape, given, size)
    tiers = stats.tiers
    results |= {"rss_gb": rss_bytes() / 1e9, "tiers": vars(tiers)}
    print(
        f"loads into slots: {tiers.num_loads}, from files: {tiers.num_reads}, slots' hits: {tiers.num_slot_hits}, ",
        end="",
    )
    print(f"RSS at the end: {results['rss_gb']:.2f} GB")
    write_json(given.json, {"machine": facts, "shape": vars(shape), "results": results})
    return 0


def started(given: argparse.Namespace, shape: Shape, adapter_bytes: int) -> Engine:
    config = EngineConfig(
        max_num_requests=MAX_NUM_REQUESTS,
        max_length=shape.num_prompt + shape.num_new,
        host_adapter_bytes=shape.num_in_memory * adapter_bytes,
    )
    base = load_base(given.base, dtype=given.dtype)
    return build_engine(base, num_slots=shape.num_slots, max_rank=given.rank, config=config)


def alone(engine: Engine, adapter: StoredAdapter, shape: Shape, seed: int) -> Timings:
    """What one request for a cold adapter takes with nothing else running."""
    trace = run_closed(engine, [(adapter, shape.num_prompt, 1)], concurrency=1, seed=seed)
    raise_first_error(trace)
    timings = trace.asked[0].timings
    assert timings is not None
    return timings


def read_seconds(adapter: StoredAdapter) -> float:
    """How long reading and checking an adapter's files takes with nothing else running."""
    start = time.perf_counter()
    read_adapter(adapter.folder, verify=adapter.verify)
    return time.perf_counter() - start


def one_round(
    engine: Engine, adapters: Sequence[StoredAdapter], shape: Shape, concurrency: int, index: int
) -> tuple[Trace, Trace]:
    """The same arrivals over the resident adapters (index modulo slots) and over all."""
    # The last ones were used before, by `alone`.
    num_drawn = len(adapters) - 2 * shape.num_alone
    drawn = zipf(num_drawn, EXPONENT, shape.num_requests, seed=index)
    traces = []
    for name, count in (("resident", shape.num_slots), ("exchange", num_drawn)):
        orders: list[Order] = [(adapters[i % count], shape.num_prompt, shape.num_new) for i in drawn]
        if name == "resident":
            warm = [(adapter, 1, 1) for adapter in adapters[: shape.num_slots]]
            raise_first_error(run_closed(engine, warm, concurrency=1, seed=index))
        trace = run_closed(engine, orders, concurrency=concurrency, seed=2 * index + (name == "exchange"))
        raise_first_error(trace)
        say(f"round {index + 1}, {name}: {trace.tokens_per_s:.1f} tokens/s")
        traces.append(trace)
    return traces[0], traces[1]


def summary(
    rounds: Sequence[tuple[Trace, Trace]], cold: Sequence[Timings], read_s: float, resident: Set[str]
) -> dict[str, Any]:
    """Medians over the rounds; times in milliseconds. resident: digests of those that were there before."""
    in_load = [item.timings for item in first_of_each(rounds[0][1], resident) if item.timings]

    def each(measure: Callable[[Trace], float]) -> tuple[float, float]:
        pairs = [(measure(resident), measure(exchange)) for resident, exchange in rounds]
        return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)

    return {
        "tokens_s": each(lambda trace: trace.tokens_per_s),
        "rate_ratio": statistics.median(b.tokens_per_s / a.tokens_per_s for a, b in rounds),
        "gap_p50_ms": each(lambda trace: 1000 * trace.gap_s(0.5)),
        "gap_p99_ms": each(lambda trace: 1000 * trace.gap_s(0.99)),
        "gap_p99_ratio": statistics.median(b.gap_s(0.99) / a.gap_s(0.99) for a, b in rounds),
        "first_p50_ms": each(lambda trace: 1000 * trace.first_s(0.5)),
        "cold_alone_ms": split_ms(cold),
        "cold_in_load_ms": split_ms(in_load),
        "reading_ms": 1000 * read_s,
    }


def split_ms(timings: Sequence[Timings]) -> dict[str, float]:
    """The time to the first token, and its parts before and after the first step begins."""
    waits = [item.queue_s for item in timings]
    return {
        "count": len(timings),
        "all": 1000 * percentile([item.first_token_s for item in timings], 0.5),
        "loading": 1000 * percentile(waits, 0.5),
        "loading_p99": 1000 * percentile(waits, 0.99),
        "step": 1000 * percentile([item.first_token_s - item.queue_s for item in timings], 0.5),
    }


def first_of_each(trace: Trace, resident: Set[str]) -> list[Asked]:
    """The first request of each adapter that was not there before."""
    firsts: dict[str, Asked] = {}
    for item in trace.asked:
        if item.adapter is not None and item.adapter.digest not in resident:
            firsts.setdefault(item.adapter.digest, item)
    return list(firsts.values())


def report(results: dict[str, Any], shape: Shape, given: argparse.Namespace, size: int) -> None:
    print(f"{shape.num_adapters} adapters on disk ({size / 1e6:.1f} MB each), room for {shape.num_in_memory} in host")
    print(f"memory, {shape.num_slots} slots; {shape.num_requests} requests of {shape.num_prompt} prompt and ", end="")
    print(
        f"{shape.num_new} output tokens, {given.concurrency} at any moment, Zipf({EXPONENT}); medians of the rounds\n"
    )
    rows = [
        (label, f"{results[key][0]:.1f}", f"{results[key][1]:.1f}", f"{results[key][1] / results[key][0]:.2f}")
        for label, key in (
            ("output tokens/s", "tokens_s"),
            ("gap between tokens, median, ms", "gap_p50_ms"),
            ("gap between tokens, p99, ms", "gap_p99_ms"),
            ("time to first token, median, ms", "first_p50_ms"),
        )
    ]
    print_table(["", "resident", "exchange", "ratio"], rows)
    print("time to the first token of a cold adapter: until its first step begins (loading, and under load waiting for")
    print("a slot), and that step\n")
    parts_of = [
        (f"{what} ({int(parts['count'])})", *(f"{parts[key]:.1f}" for key in ("all", "loading", "loading_p99", "step")))
        for what, parts in (("alone", results["cold_alone_ms"]), ("under load", results["cold_in_load_ms"]))
    ]
    print_table(["median, ms", "all", "loading", "loading, p99", "1 step"], parts_of)
    print(f"reading and checking one adapter's files alone: {results['reading_ms']:.1f} ms\n")
    if not given.quick:
        rate = goal("rate over the resident rate", 0.8, results["rate_ratio"])
        gap = at_most("p99 gap over the resident one", 2, results["gap_p99_ratio"])
        print_table(["goal", "wanted", "measured", ""], [rate, gap])


if __name__ == "__main__":
    sys.exit(main())
