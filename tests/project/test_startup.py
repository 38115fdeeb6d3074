"""What only looks loads nothing that takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.adapters.store import AdapterStore
from support.adapters import save_random_adapter
from support.tiny import make_model

HEAVY = {"torch", "transformers", "numba", "fastapi", "duckdb", "pyarrow"}


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        ("--help", HEAVY | {"numpy", "pydantic", "ruamel", "rich", "http.client", "asyncio"}),
        ("ls", HEAVY),
        ("show mood", HEAVY),
        ("rm mood --yes", HEAVY),
        ("tasks ls", HEAVY),
        ("cost", HEAVY),
    ],
)
def test_what_only_looks_loads_nothing_heavy(command: str, heavy: set[str], tmp_path: Path) -> None:
    """Why help and lists answer at once, measured without a clock, which another machine would read otherwise."""
    AdapterStore(tmp_path).publish("mood", save_random_adapter(tmp_path / "mood", make_model()))
    program = (
        "import sys, typer\n"
        "from atoll.cli.main import app\n"
        f"typer.main.get_command(app).main({command.split()!r}, standalone_mode=False)\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True,
        env=os.environ | {"ATOLL_STORE": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout
    assert heavy.isdisjoint(done.stderr.split())
