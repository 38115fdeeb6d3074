"""Packages of npm that tests need, exactly as a lock has them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest


def npm_packages(folder: Path) -> Path:
    """A folder with `node_modules` as the lock in `folder` has them, kept in the user's cache. Skips without npm."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed (Debian: apt-get install nodejs npm)")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atoll-tests"
    digest = hashlib.sha256((folder / "package-lock.json").read_bytes()).hexdigest()
    made = cache / f"npm-{digest[:16]}"
    if not made.is_dir():
        new = cache / f"{made.name}.{os.getpid()}"
        new.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(folder / name, new)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=new, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        if not made.exists():
            new.rename(made)
    return made
