"""Checkpoints of a run: complete or absent, never torn.

    <run>/checkpoint-<passes>/   state.json, <adapter>.safetensors

A checkpoint is written to a hidden folder and renamed into place when everything in it is on the disk; older ones are
removed after that.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from atoll.errors import DataError
from atoll.files import fsync_dir, write_atomic

_NAME = re.compile(r"checkpoint-(\d+)")


def save_checkpoint(
    run: Path, num_passes: int, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """state: JSON values. tensors: adapter name -> its tensors."""
    target = run / f"checkpoint-{num_passes}"
    if target.exists():
        return  # training is a function of its inputs: the same pass has the same state
    run.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".checkpoint-", dir=run))
    try:
        for name, group in tensors.items():
            plain = {key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}
            write_atomic(temporary / f"{name}.safetensors", save(plain))
        write_atomic(temporary / "state.json", json.dumps(state))
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_dir(run)
    for folder in [*run.glob("checkpoint-*"), *run.glob(".checkpoint-*")]:
        if folder != target:
            shutil.rmtree(folder, ignore_errors=True)


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run."""
    found = [(int(match[1]), path) for path in run.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return max(found)[1] if found else None


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The state and tensors as saved. Raises DataError if a file is damaged."""
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_bytes())
        tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(
            f"the checkpoint cannot be read: {error}", where=str(folder), mend="remove the folder and tune again"
        ) from None
    return state, tensors


def remove_checkpoints(run: Path) -> None:
    """Remove all checkpoints; a finished run does not need them."""
    for folder in run.glob("checkpoint-*"):
        shutil.rmtree(folder)
