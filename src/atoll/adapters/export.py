"""Adapters on their way out of the store: as PEFT's own files, or worked into the weights of their base model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from atoll.adapters.peft_files import MAX_BYTES, adapter_digest
from atoll.adapters.peft_io import AdapterWeights
from atoll.adapters.store import CARD_NAME, StoredAdapter
from atoll.errors import AdapterInvalid, AtollError, UsageError
from atoll.files import fsync_dir


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target` by one rename; nothing is left of it after an error.

    Raises UsageError where something is at `target` already, AtollError where it cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError("there is something already", where=str(target), mend="name a folder that is new or empty")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}.", dir=target.parent))
    except OSError as error:
        raise AtollError("the folder cannot be made", where=str(target), why=error.strerror) from None
    try:
        yield temporary
        temporary.chmod(0o755)
        for path in temporary.iterdir():
            path.chmod(0o644)
        temporary.rename(target)
        fsync_dir(target.parent)
    except OSError as error:
        raise AtollError("the folder could not be written", where=str(target), why=error.strerror) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_files(adapter: StoredAdapter, folder: Path) -> list[str]:
    """Copy an adapter's files, byte for byte, and return their names. Raises AdapterInvalid if they are damaged."""
    names = [name for name in (*MAX_BYTES, CARD_NAME) if (adapter.folder / name).is_file()]
    for name in names:
        shutil.copyfile(adapter.folder / name, folder / name)
    adapter.verify(adapter_digest(folder))
    return names


def merge_into(model: nn.Module, adapter: AdapterWeights) -> None:
    """Add an adapter to the weights of its base model, in place: W + scaling B A, computed in float32.

    Raises AdapterInvalid, and changes nothing, if it does not fit the model.
    """
    for name, lora in adapter.modules.items():
        layer = dict(model.named_modules()).get(name)
        shape = (lora.b.shape[0], lora.a.shape[1])
        if not isinstance(layer, nn.Linear) or tuple(layer.weight.shape) != shape:
            raise AdapterInvalid(
                f"the base model has no linear layer {name!r} of {shape[1]} inputs and {shape[0]} outputs",
                where=adapter.where,
                why="the adapter was made for another base model",
            )
    with torch.no_grad():
        for name, lora in adapter.modules.items():
            weight = model.get_submodule(name).get_parameter("weight")
            weight.copy_(weight.float() + lora.scaling * (lora.b.float() @ lora.a.float()))
