"""A real Prometheus, from Debian's package, that scrapes a server of ours."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from support.servers import wait_until

SCRAPE_MS = 200


def binary(name: str) -> str:
    """The path of a program of Debian's package `prometheus`; the test is skipped where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} here; to get it: scripts/debian-tools, or apt-get install prometheus")
    return path


class Prometheus:
    """Its HTTP interface."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer. Raises urllib's HTTPError, with Prometheus' own words, for a bad query."""
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}{query}", timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def query(self, expression: str) -> list[Any]:
        """The samples of an instant query."""
        samples: list[Any] = self.get("query", query=expression)["result"]
        return samples

    def is_up(self) -> bool:
        """Whether it has scraped its target."""
        with suppress(OSError):
            return [sample["value"][1] for sample in self.query("up")] == ["1"]
        return False


@contextmanager
def scraping(folder: Path, server_url: str, rules: Path) -> Iterator[Prometheus]:
    """Run a Prometheus over one server until the block ends."""
    program = binary("prometheus")
    config = {
        "global": {"scrape_interval": f"{SCRAPE_MS}ms", "evaluation_interval": "1s"},
        "rule_files": [str(rules.resolve())],
        "scrape_configs": [
            {"job_name": "atoll", "static_configs": [{"targets": [server_url.removeprefix("http://")]}]}
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    options = {
        "config.file": folder / "prometheus.yml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": address,
        "log.level": "warn",
    }
    command = [program, *(f"--{name}={value}" for name, value in options.items())]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    prometheus = Prometheus(f"http://{address}")
    try:
        wait_until(lambda: prometheus.is_up() or process.poll() is not None, timeout_s=60)
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        yield prometheus
    finally:
        process.terminate()
        process.wait(timeout=30)
