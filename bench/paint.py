"""The web page: how soon a browser shows something while the engine is busy, and what the page costs the engine.

make bench-paint      or      .venv/bin/python bench/paint.py --rounds 5

A real server (`atoll serve`) and Chromium share the machine. First contentful paint as the browser itself reports it,
each time in a fresh context without a cache: on an idle server, then with 16 requests of /generate at any moment. The
engine's rate is taken without the browser and with pages opened one after the other.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
from playwright.sync_api import Browser, sync_playwright

from common import machine, parser, print_table, quote, write_json
from goals import at_most
from overload import Tally, address_of, drive

PAGES = ("try", "adapters", "leaderboard", "runs", "operations", "cost")
NUM_AT_ONCE = 16
FIRST_PAINT = """new Promise(found => new PerformanceObserver(list => {
  for (const paint of list.getEntriesByName("first-contentful-paint")) found(paint.startTime)
}).observe({type: "paint", buffered: true}))"""

Paints = dict[str, list[float]]
"""Page -> milliseconds of each round."""


def main() -> int:
    given = parser(__doc__, rounds=5).parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("bench/paint.py needs Chromium: apt-get install chromium", file=sys.stderr)
        return 2
    rounds = 1 if given.quick else given.rounds
    facts = machine(quick=given.quick)
    print(quote(facts), end="\n\n")
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).parent / "atoll"), "serve", "--base-model", given.base, "--port", "0"]
        command += ["--store", folder]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server,
            sync_playwright() as playwright,
        ):
            try:
                url = address_of(server)
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
                results = measure(browser, url, rounds, seconds=3 if given.quick else 15)
            finally:
                server.send_signal(signal.SIGTERM)
    report(*results)
    idle, busy, alone_s, beside_s = results
    write_json(
        given.json,
        {"machine": facts, "idle_ms": idle, "busy_ms": busy, "alone_tokens_s": alone_s, "beside_tokens_s": beside_s},
    )
    return 0


def measure(browser: Browser, url: str, rounds: int, *, seconds: float) -> tuple[Paints, Paints, float, float]:
    """Paints on an idle and on a busy server, and the engine's tokens/s without and with the browser."""
    open_pages(browser, url, 1)
    idle = open_pages(browser, url, rounds)
    busy: Paints = {page: [] for page in PAGES}
    # Playwright's event loop has this thread.
    with ThreadPoolExecutor(1) as pool:
        alone = pool.submit(load, url, seconds).result()
        under_way = pool.submit(load, url, seconds)
        while not under_way.done() or not busy[PAGES[0]]:
            for page, paints in open_pages(browser, url, 1).items():
                busy[page] += paints
    return idle, busy, alone.tokens_s, under_way.result().tokens_s


def load(url: str, seconds: float) -> Tally:
    """`NUM_AT_ONCE` requests at any moment."""

    async def run() -> Tally:
        tally = Tally()
        async with httpx.AsyncClient(base_url=url, timeout=600) as client:
            await drive(client, tally, closed=NUM_AT_ONCE, seconds=seconds)
        return tally

    return asyncio.run(run())


def open_pages(browser: Browser, url: str, rounds: int) -> Paints:
    """Every page in a context of its own, once a round."""
    paints: Paints = {page: [] for page in PAGES}
    for _ in range(rounds):
        for page, found in paints.items():
            context = browser.new_context()
            tab = context.new_page()
            tab.goto(f"{url}/ui/{page}", wait_until="load")
            found.append(float(tab.evaluate(FIRST_PAINT)))
            context.close()
    return paints


def report(idle: Paints, busy: Paints, alone_s: float, beside_s: float) -> None:
    print("first contentful paint, ms: median (worst)\n")
    rows = [
        (page, *(f"{statistics.median(of[page]):.0f} ({max(of[page]):.0f})" for of in (idle, busy))) for page in PAGES
    ]
    print_table(("page", "idle", "engine busy"), rows)
    print(f"the engine, tokens/s: {alone_s:.0f} by itself, {beside_s:.0f} with pages opened all the time\n")
    worst = max(statistics.median(paints) for paints in busy.values())
    print_table(("goal", "wanted", "measured", ""), [at_most("paint while busy, seconds", 0.5, worst / 1e3)])


if __name__ == "__main__":
    sys.exit(main())
