"""The unmodified openai client of npm against a real server."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.npm import npm_packages
from support.servers import Served

FOLDER = Path(__file__).parent / "npm"
CHECKS = [
    "models",
    "completions",
    "chat",
    "streamHelper",
    "structuredOutput",
    "tools",
    "runTools",
    "embeddings",
    "responses",
    "errors",
    "leaving",
]


@pytest.fixture(scope="module")
def packages() -> Path:
    return npm_packages(FOLDER)


def test_the_npm_client_has_all_its_features(served: Served, packages: Path) -> None:
    command = ["node", str(FOLDER / "client.mjs"), f"{served.url}/v1", str(packages)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == CHECKS, done.stderr[-4000:]
    assert done.returncode == 0
