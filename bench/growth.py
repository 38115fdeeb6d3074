"""Growth: output rate, step time and memory against adapters, ranks, concurrency and prompt length.

make bench-growth      or      .venv/bin/python bench/growth.py --sweeps ranks,prompts

Each point is measured in a process of its own, so that its memory is its own. Writes docs/images/growth.svg and the
figures beside it as growth.csv (--quick: below the work folder).
"""

from __future__ import annotations

import csv
import multiprocessing
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from atoll.adapters.store import StoredAdapter
from atoll.engine import EngineConfig, build_engine
from atoll.model.load import load_base
from common import BENCH, machine, parser, percentile, print_table, quote, rss_bytes, say, work_folder, write_json
from drive import Order, raise_first_error, run_closed
from made import base_config, linear_shapes, make_adapters
from plot import growth_svg

MAX_NUM_SLOTS = 32
SHORT = 8


@dataclass(frozen=True)
class Point:
    """What one process measures. sweep: which of the four it belongs to; x: the value that the sweep varies."""

    sweep: str
    x: int
    num_adapters: int = 8
    rank: int = 16
    concurrency: int = 32
    num_prompt: int = 96
    num_new: int = 32
    num_waves: int = 3


@dataclass(frozen=True)
class Measured:
    """tokens_s: output tokens. prompt_tokens_s: prompt tokens over the same time. step_ms: the median gap of tokens."""

    sweep: str
    x: int
    tokens_s: float
    prompt_tokens_s: float
    step_ms: float
    first_ms: float
    rss_mb: float
    idle_rss_mb: float


def sweeps(quick: bool) -> dict[str, list[Point]]:
    """All points, in the order in which they are measured."""
    if quick:
        small = Point("adapters", 2, num_adapters=2, rank=4, concurrency=2, num_prompt=16, num_new=6, num_waves=1)
        return {
            "adapters": [replace(small, x=n, num_adapters=n) for n in (2, 6)],
            "prompts": [replace(small, sweep="prompts", x=n, num_prompt=n) for n in (16, 64)],
        }
    return {
        "adapters": [Point("adapters", n, num_adapters=n, rank=8) for n in (1, 4, 16, 64, 256, 1000)],
        "ranks": [Point("ranks", n, rank=n) for n in (4, 8, 16, 32, 64)],
        "concurrency": [Point("concurrency", n, concurrency=n) for n in (1, 2, 4, 8, 16, 32, 64, 128)],
        "prompts": [
            Point("prompts", n, num_prompt=n, concurrency=8, num_waves=2) for n in (32, 128, 512, 1024, 2048, 4096)
        ],
    }


def main() -> int:
    options = parser(__doc__)
    options.add_argument(
        "--sweeps", default="adapters,ranks,concurrency,prompts", help="which of the four, with commas"
    )
    options.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    given = options.parse_args()
    folder = given.work / "plots" if given.quick else BENCH.parent / "docs" / "images"
    facts = machine(quick=given.quick)
    print(quote(facts), end="\n\n")
    measured: list[Measured] = []
    for name, points in sweeps(given.quick).items():
        if name not in given.sweeps.split(","):
            continue
        results = [in_a_process(point, given.base, given.dtype, given.work) for point in points]
        report(name, points, results)
        measured += results
    write_csv(folder / "growth.csv", measured)
    (folder / "growth.svg").write_text(growth_svg([asdict(item) for item in measured], quote(facts)), encoding="utf-8")
    write_json(given.json, {"machine": facts, "points": [asdict(item) for item in measured]})
    print(f"plot: {folder / 'growth.svg'}")
    return 0


def in_a_process(point: Point, base: str, dtype: str, work: Path) -> Measured:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        result = pool.submit(measure, point, base, dtype, work).result()
    say(f"{point.sweep} {point.x}: {result.tokens_s:.1f} tokens/s, {result.rss_mb:.0f} MB")
    return result


def measure(point: Point, base_name: str, dtype: str, work: Path) -> Measured:
    """Make the adapters, use each once, then time the closed loop."""
    with work_folder(work) as folder:
        shapes = linear_shapes(base_config(base_name))
        adapters = make_adapters(folder, shapes, point.num_adapters, rank=point.rank, dtype=torch.bfloat16)
        base = load_base(base_name, dtype=dtype)  # type: ignore[arg-type]
        idle = rss_bytes()
        config = EngineConfig(max_num_requests=point.concurrency, max_length=point.num_prompt + point.num_new)
        num_slots = min(point.num_adapters, MAX_NUM_SLOTS)
        with build_engine(base, num_slots=num_slots, max_rank=point.rank, config=config) as engine:
            warm: list[Order] = [(adapter, SHORT, 2) for adapter in adapters]
            raise_first_error(run_closed(engine, warm, concurrency=point.concurrency, seed=1))
            orders = list(spread(point, adapters))
            trace = run_closed(engine, orders, concurrency=point.concurrency, seed=2)
            raise_first_error(trace)
            gaps = [gap for item in trace.asked for gap in item.gaps_s]
            return Measured(
                sweep=point.sweep,
                x=point.x,
                tokens_s=trace.tokens_per_s,
                prompt_tokens_s=sum(item.num_prompt for item in trace.asked) / trace.seconds,
                step_ms=1000 * percentile(gaps, 0.5),
                first_ms=1000 * trace.first_s(0.5),
                rss_mb=rss_bytes() / 1e6,
                idle_rss_mb=idle / 1e6,
            )


def spread(point: Point, adapters: Sequence[StoredAdapter]) -> Iterator[Order]:
    """Some waves of requests; the adapters take turns, those that were used last come first."""
    for index in range(point.num_waves * point.concurrency):
        yield adapters[-1 - index % len(adapters)], point.num_prompt, point.num_new


def report(name: str, points: Sequence[Point], results: Sequence[Measured]) -> None:
    first = points[0]
    fixed = {
        "adapters": f"rank {first.rank}, {first.concurrency} requests, at most {MAX_NUM_SLOTS} slots",
        "ranks": f"{first.num_adapters} adapters, {first.concurrency} requests",
        "concurrency": f"{first.num_adapters} adapters of rank {first.rank}",
        "prompts": f"{first.num_adapters} adapters of rank {first.rank}, {first.concurrency} requests",
    }[name]
    print(f"{name}: {fixed}, {first.num_new} output tokens\n")
    head = [name, "tokens/s", "prompt tokens/s", "step, ms", "first token, ms", "RSS, MB", "before the engine"]
    columns = ("tokens_s", "prompt_tokens_s", "step_ms", "first_ms", "rss_mb", "idle_rss_mb")
    rows = [(item.x, *(f"{getattr(item, column):.1f}" for column in columns)) for item in results]
    print_table(head, rows)
    xs = [float(item.x) for item in results]
    print(f"step time: {line(xs, [item.step_ms for item in results], 'ms')}")
    print(f"memory: {line(xs, [item.rss_mb for item in results], 'MB')}\n", flush=True)


def line(xs: Sequence[float], ys: Sequence[float], unit: str) -> str:
    """The least-squares line in words, and how far the worst point is from it."""
    slope, start = statistics.linear_regression(xs, ys)
    worst = max(abs(y - (start + slope * x)) for x, y in zip(xs, ys, strict=True))
    return (
        f"{start:.4g} {unit} + {slope:.4g} {unit} each; worst point {worst / max(ys):.0%} of the largest off that line"
    )


def write_csv(path: Path, measured: Sequence[Measured]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Measured)], lineterminator="\n")
        writer.writeheader()
        for item in measured:
            writer.writerow({key: round(v, 2) if isinstance(v, float) else v for key, v in asdict(item).items()})


if __name__ == "__main__":
    sys.exit(main())
