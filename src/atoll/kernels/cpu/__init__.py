# mypy: disable-error-code="attr-defined"
"""Kernels for CPUs, compiled by numba: no compiler is needed at run time, and each is compiled once for a machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

from numba import config


def cache_folder(above: Path, sources: Path) -> Path:
    """Where numba keeps what it compiles from a folder of sources: another one after each change.

    By itself numba keeps a kernel until the kernel's own file changes, although it holds code of the others' files.
    """
    digest = hashlib.sha256()
    for path in sorted(sources.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return above / f"atoll-{digest.hexdigest()[:16]}"


_here = Path(__file__).parent
CACHE_FOLDER = cache_folder(Path(config.CACHE_DIR or _here / "__pycache__"), _here)
config.CACHE_DIR = str(CACHE_FOLDER)
