"""Overload: four times as many requests as the server can answer, then calm again.

make bench-overload      or      .venv/bin/python bench/overload.py --seconds 60

A real server (`atoll serve`) answers /generate over HTTP. First the peak: as many requests at any moment as the engine
runs. Then requests arrive evenly at four times that rate, whatever becomes of them; those beyond the queue get 429 at
once. Then nothing but one request at a time: how long until it is as quick as before.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from common import machine, parser, percentile, print_table, quote, say, write_json
from goals import at_most, goal

NUM_AT_ONCE = 32
NUM_PROMPT_WORDS = 40
NUM_NEW = 24
OVERLOAD = 4
CALM_WITHIN = 1.5
SETTLES_AFTER = 0.3


@dataclass
class Tally:
    """What became of the requests. refused_s: how long each 429 took."""

    seconds: float = 0.0
    num_tokens: int = 0
    answered_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @property
    def tokens_s(self) -> float:
        return self.num_tokens / self.seconds


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=60.0, help="of the peak, and of the overload (60)")
    options.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    given = options.parse_args()
    seconds = 5.0 if given.quick else given.seconds
    facts = machine(quick=given.quick)
    print(quote(facts), end="\n\n")
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).parent / "atoll"), "serve", "--base-model", given.base, "--port", "0"]
        command += ["--store", folder, "--dtype", given.dtype, "--max-num-requests", str(NUM_AT_ONCE)]
        command += ["--max-open-requests", str(NUM_AT_ONCE * 3 // 2)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            try:
                results = asyncio.run(measure(address_of(server), seconds))
            finally:
                server.send_signal(signal.SIGTERM)
    report(results)
    write_json(given.json, {"machine": facts, "results": results})
    return 0


def address_of(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith("listening on "):
            return line.split()[-1]
    raise SystemExit("the server did not start")


async def measure(url: str, seconds: float) -> dict[str, float]:
    server = urlsplit(url).netloc
    await drive(server, Tally(), closed=NUM_AT_ONCE, seconds=seconds / 4)
    before_s = statistics.median([await alone(server) for _ in range(5)])
    peak = Tally()
    await drive(server, peak, closed=NUM_AT_ONCE, seconds=seconds)
    say(f"peak: {peak.tokens_s:.0f} tokens/s")
    flood = Tally()
    rate = OVERLOAD * len(peak.answered_s) / peak.seconds
    waiting = await arrive(server, flood, rate, seconds)
    flood_tokens_s = flood.tokens_s  # those that still wait are answered later
    say(f"overload: {flood_tokens_s:.0f} tokens/s, {len(flood.refused_s)} refused, {flood.others[:3]}")
    recovery_s = await recover(server, CALM_WITHIN * before_s)
    await asyncio.gather(*waiting)
    return {
        "peak_tokens_s": peak.tokens_s,
        "overload_tokens_s": flood_tokens_s,
        "offered_requests_s": rate,
        "refused": len(flood.refused_s),
        "refused_p99_ms": 1e3 * percentile(flood.refused_s, 0.99) if flood.refused_s else 0.0,
        "failed": len(flood.others),
        "alone_before_s": before_s,
        "recovery_s": recovery_s,
    }


async def ask(server: str, tally: Tally) -> None:
    """One request on a connection of its own, by hand: an HTTP library takes from the engine's cores what it needs."""
    prompt = " ".join(random.choices(("blue", "river", "engine", "seven", "atoll"), k=NUM_PROMPT_WORDS))
    parameters = {"max_new_tokens": NUM_NEW, "ignore_eos_token": True}
    body = json.dumps({"inputs": prompt, "parameters": parameters}).encode()
    lines = (f"Host: {server}", "Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close")
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection(*server.rsplit(":", 1))
    writer.write("\r\n".join(("POST /generate HTTP/1.1", *lines, "", "")).encode() + body)
    answer = await reader.read(-1)
    writer.close()
    took_s = time.perf_counter() - start
    status = answer[9:12]
    if status == b"200":
        tally.answered_s.append(took_s)
        tally.num_tokens += NUM_NEW
    elif status == b"429":
        tally.refused_s.append(took_s)
    else:
        tally.others.append(answer[:200].decode(errors="replace"))


async def alone(server: str) -> float:
    tally = Tally()
    await ask(server, tally)
    return tally.answered_s[0] if tally.answered_s else float("inf")


async def drive(server: str, tally: Tally, *, closed: int, seconds: float) -> None:
    """`closed` requests at any moment; those that begin in time are counted to their end."""
    start = time.perf_counter()

    async def one_after_the_other() -> None:
        while time.perf_counter() - start < seconds:
            await ask(server, tally)

    await asyncio.gather(*(one_after_the_other() for _ in range(closed)))
    tally.seconds = time.perf_counter() - start


async def arrive(server: str, tally: Tally, rate: float, seconds: float) -> list[asyncio.Task[None]]:
    """Requests come evenly, whatever becomes of them; answers are counted once the queue has filled, to the end."""
    start = counted_from = time.perf_counter()
    tasks: list[asyncio.Task[None]] = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(server, tally)))
        if tally.seconds == 0 and time.perf_counter() - start > SETTLES_AFTER * seconds:
            counted_from, tally.num_tokens = time.perf_counter(), 0
            tally.seconds = 1
    tally.seconds = time.perf_counter() - counted_from
    return [task for task in tasks if not task.done()]


async def recover(server: str, limit_s: float) -> float:
    """Seconds from the last arrival until a request is answered within `limit_s`."""
    start = time.perf_counter()
    while time.perf_counter() - start < 60:
        began = time.perf_counter()
        if await alone(server) <= limit_s:
            return began - start
        await asyncio.sleep(0.1)
    return float("inf")


def report(results: dict[str, float]) -> None:
    print_table(("", ""), [(name, f"{value:.2f}") for name, value in results.items()])
    goals = [
        goal("goodput over peak", 0.9, results["overload_tokens_s"] / results["peak_tokens_s"]),
        at_most("recovery, seconds", 5, results["recovery_s"]),
        at_most("requests that failed", 0, results["failed"]),
    ]
    print_table(("goal", "wanted", "measured", ""), goals)


if __name__ == "__main__":
    raise SystemExit(main())
