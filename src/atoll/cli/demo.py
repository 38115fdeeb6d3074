"""`atoll demo`: the whole way on data that ships with Atoll, by the same commands that a user types."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

REQUEST_TIMEOUT_S = 60


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the fleet file, the run and the adapters.")] = Path(
        "demo-out"
    ),
    limit: Annotated[int, typer.Option(min=1, help="Test examples of each task.")] = 100,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to serve on; 0 takes a free one.")] = 0,
) -> None:
    """Tune, evaluate and serve three small specialists: no data, no GPU, no account.

    On a terminal it then goes on serving until Ctrl-C.

    Example: atoll demo --limit 20
    """
    from atoll.cli.eval import evaluate
    from atoll.cli.tune import tune
    from atoll.config.prices import cost_usd, hourly_price

    started_at_s = time.monotonic()
    fleet, store = _write_fleet(output), output / "store"
    _say(f"1 of 3: atoll tune {fleet} --store {store}")
    tune(fleet, store=store, resume=True)
    _say(f"2 of 3: atoll eval {fleet} --store {store} --limit {limit}")
    evaluate(fleet, store=store, limit=limit, output=output / "eval")
    _say(f"3 of 3: atoll serve --store {store} --port {port}")
    with _serving(store, port) as (server, address):
        for name in ("dates", "sql", "support"):
            _ask(address, name)
        seconds, price = time.monotonic() - started_at_s, hourly_price()
        cents = 100 * cost_usd(seconds, price)
        _say(f"done in {seconds / 60:.1f} minutes for {cents:.1f} cents ({price.name}, ${price.usd_per_hour}/h)")
        print(f"report:  {output / 'eval' / 'report.html'}")
        print(f"try:     atoll run dates --store {store} 'le 3 mars 2021'")
        if sys.stdin.isatty() and sys.stdout.isatty():
            print(f"serving on {address} until Ctrl-C", flush=True)
            server.wait()


def _write_fleet(output: Path) -> Path:
    from atoll.files import write_atomic

    text = resources.files("atoll.cli").joinpath("demo.yaml").read_text("utf-8")
    fleet = output / "demo.yaml"
    write_atomic(fleet, f"{text}output: {json.dumps(str(output / 'run'))}\n")
    return fleet


def _say(text: str) -> None:
    typer.secho(f"\n{text}", bold=True)


@contextmanager
def _serving(store: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`atoll serve` in a process of its own, once it listens, and its address. Its log goes to a file by the store."""
    from atoll.errors import AtollError

    command = [sys.executable, "-m", "atoll", "serve", "--store", str(store), "--port", str(port)]
    log_path = store.with_name("serve.log")
    with (
        log_path.open("w", encoding="utf-8") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        try:
            address = None
            for line in server.stdout or ():
                print(line, end="", flush=True)
                if line.startswith("listening on "):
                    address = line.split()[-1]
                    break
            if address is None:
                server.wait()
                raise AtollError("the server ended before it listened", why=log_path.read_text().strip()[-1000:])
            yield server, address
        except KeyboardInterrupt:
            print("stopping ...")
        finally:
            server.terminate()


def _ask(address: str, name: str) -> None:
    """Send the first test example of a task to the adapter of that name, and print question, answer and truth."""
    from atoll.tasks.dataset import load_split
    from atoll.tasks.task import find_task

    task = find_task(name)
    row = load_split(task, "test", limit=1)[0].row
    inputs = {column: row[column] for column in task.input_columns}
    answer = _post(f"{address}/generate", {"inputs": inputs, "parameters": {"adapter_id": name}})["generated_text"]
    print(f"{name:>8}: {' | '.join(inputs.values())}")
    print(f"{'answer':>8}: {answer}   (truth: {row[task.target_column]})")


def _post(url: str, body: dict[str, Any]) -> Any:
    import urllib.request

    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as response:
        return json.loads(response.read())
