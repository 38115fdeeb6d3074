"""HTTP: what the server itself costs, over an engine that answers at once. Needs `wrk`.

make bench-frontend      or      .venv/bin/python bench/frontend.py --connections 64

The server has one core and wrk the other. Three shapes: POST /generate (one token), POST /v1/chat/completions (one
token) and GET /health, which no engine is asked for. Each connection asks again as soon as it is answered, which
shows the rate; a request then waits for those of all other connections, 64 / rate on average, whatever the server does.
So /generate is asked once more with pauses that bring the connections to somewhat more than 1,000 requests/s: the
latency of a server that has that much to do.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, parser, print_table, quote, say, write_json
from goals import at_most, goal

BODIES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "/generate": ("/generate", {"inputs": "Which one?", "parameters": {"max_new_tokens": 1}}),
    "/v1/chat/completions": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Which one?"}], "max_tokens": 1},
    ),
    "/health": ("/health", None),
}
STARTS_WITHIN_S = 120
WANTED_RATE = 1000
PACED = "/generate, paced"


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--connections", type=int, default=64, help="open at any moment (64)")
    options.add_argument("--seconds", type=int, default=15, help="of load for each shape (15)")
    options.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.port:
        serve(given.base, given.port)
        return 0
    if shutil.which("wrk") is None:
        print("bench/frontend.py needs wrk: apt-get install wrk", file=sys.stderr)
        return 2
    seconds = 2 if given.quick else given.seconds
    facts = machine(quick=given.quick)
    print(quote(facts), end="\n\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = subprocess.Popen([sys.executable, __file__, "--base", given.base, "--port", str(port)])
    try:
        wait_for(port)
        results = {name: measure(port, *BODIES[name], given.connections, seconds) for name in BODIES}
        # Somewhat less than what would make the wanted rate if answers took no time.
        pause_ms = 0.9 * 1000 * given.connections / WANTED_RATE
        results[PACED] = measure(port, *BODIES["/generate"], given.connections, seconds, pause_ms)
    finally:
        server.terminate()
        server.wait()
    report(results, given.connections)
    write_json(given.json, {"machine": facts, "results": results})
    return 0


def serve(base_name: str, port: int) -> None:
    """The real application over an engine whose thread answers each request with one token."""
    os.sched_setaffinity(0, {0})
    from atoll.adapters.catalog import AdapterCatalog
    from atoll.adapters.store import AdapterStore
    from atoll.cli.serving import listen, run_server
    from atoll.model.load import load_base
    from atoll.server.access import Lifecycle
    from atoll.server.app import create_app
    from atoll.server.settings import ServerSettings

    base, settings, lifecycle, engine = load_base(base_name), ServerSettings(), Lifecycle(), InstantEngine()
    with tempfile.TemporaryDirectory() as folder:
        catalog = AdapterCatalog(AdapterStore(Path(folder)))
        app = create_app(engine, base, catalog, settings=settings, lifecycle=lifecycle)
        run_server(app, listen("127.0.0.1", port), "ready", settings, lifecycle, engine=engine, drain_s=1)


class InstantEngine:
    """Answers every request with its last prompt token, on the thread that submits."""

    is_alive = True
    max_length = 2048

    def submit(self, request: Any) -> None:
        from atoll.engine import FinishEvent, Timings, TokenEvent

        token_id = request.prompt_ids[-1]
        request.on_event(TokenEvent(request_id=request.request_id, token_id=token_id, text="x", logprob=-0.5))
        request.on_event(
            FinishEvent(
                request_id=request.request_id,
                finish_reason="length",
                stop_reason=None,
                text="x",
                token_ids=(token_id,),
                num_prompt_tokens=len(request.prompt_ids),
                seed=None,
                timings=Timings(queue_s=0.0, first_token_s=0.0, total_s=0.0),
            )
        )

    def abort(self, request_id: str) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing runs."""

    def adapters(self) -> list[Any]:
        """None."""
        return []

    def stats(self) -> Any:
        from atoll.engine import EngineStats

        return EngineStats()


def wait_for(port: int) -> None:
    deadline_s = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline_s:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit("the server did not start")


def measure(
    port: int, path: str, body: dict[str, Any] | None, connections: int, seconds: int, pause_ms: float = 0
) -> dict[str, float]:
    """Requests per second and latencies in milliseconds, as wrk saw them.

    pause_ms: of a connection between answer and next request, on average; drawn evenly from nothing to twice as long.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        if body is not None:
            script.write(f'wrk.method = "POST"\nwrk.body = {json.dumps(json.dumps(body))}\n')
            script.write('wrk.headers["Content-Type"] = "application/json"\n')
        if pause_ms:
            script.write(f"function delay() return math.random(0, {round(2 * pause_ms)}) end\n")
        script.flush()
        command = ["taskset", "-c", str(os.cpu_count() - 1), "wrk", "-t1", f"-c{connections}", "--latency"]
        command += [f"-d{seconds}s", "-s", script.name, f"http://127.0.0.1:{port}{path}"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    say(path)
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(output)
    return {
        "requests_s": float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1]),
        **{f"p{share}_ms": milliseconds(output, share) for share in (50, 99)},
    }


def milliseconds(output: str, share: int) -> float:
    value, unit = re.search(rf"{share}%\s+([\d.]+)(us|ms|s)", output).groups()
    return float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def report(results: dict[str, dict[str, float]], connections: int) -> None:
    print(f"\n{connections} connections, the server on one core")
    rows = [(name, *(f"{value:.1f}" for value in row.values())) for name, row in results.items()]
    print_table(("", "requests/s", "p50 ms", "p99 ms"), rows)
    generate, paced = results["/generate"], results[PACED]
    goals = [
        goal("requests/s, /generate", WANTED_RATE, generate["requests_s"]),
        at_most("p99 ms, /generate", 25, generate["p99_ms"]),
        goal("requests/s, paced", WANTED_RATE, paced["requests_s"]),
        at_most("p99 ms, paced", 25, paced["p99_ms"]),
    ]
    print_table(("goal", "wanted", "measured", ""), goals)


if __name__ == "__main__":
    raise SystemExit(main())
