"""The unmodified openai client of npm against a real server."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

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
    """A folder with the client as the lock has it; made once and kept in the user's cache."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed (Debian: apt-get install nodejs npm)")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atoll-tests"
    digest = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
    folder = cache / f"npm-{digest[:16]}"
    if not folder.is_dir():
        new = cache / f"{folder.name}.{os.getpid()}"
        new.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(FOLDER / name, new)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=new, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        if not folder.exists():
            new.rename(folder)
    return folder


def test_the_npm_client_has_all_its_features(served: Served, packages: Path) -> None:
    command = ["node", str(FOLDER / "client.mjs"), f"{served.url}/v1", str(packages)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == CHECKS, done.stderr[-4000:]
    assert done.returncode == 0
