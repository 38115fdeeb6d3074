"""The static checks of scripts/check, so that whoever runs all tests runs them too."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("step", ["format", "lint", "types", "floors"])
def test_the_check_passes(step: str) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "check", step], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
