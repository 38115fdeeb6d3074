"""The files of an adapter in PEFT's own format, and the digest over them; nothing of this needs torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from atoll.adapters.contract import CONTRACT_NAME, MAX_CONTRACT_BYTES
from atoll.errors import AdapterInvalid

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MAX_BYTES = {CONFIG_NAME: 1 << 20, WEIGHTS_NAME: 8 << 30, CONTRACT_NAME: MAX_CONTRACT_BYTES}
"""The files that decide what an adapter answers, and their largest sizes; its digest covers them, and no model card."""


def adapter_digest(folder: Path) -> str:
    """sha256 over the contents of an adapter's files. Raises AdapterInvalid if one is larger than it may be."""
    parts = {}
    for name, max_bytes in MAX_BYTES.items():
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                if path.stat().st_size > max_bytes:
                    raise _too_large(path)
                parts[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digest_of(parts)


def read_small(path: Path) -> bytes | None:
    """The content of the config or the contract; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        data = file.read(MAX_BYTES[path.name] + 1)
    if len(data) > MAX_BYTES[path.name]:
        raise _too_large(path)
    return data


def _too_large(path: Path) -> AdapterInvalid:
    return AdapterInvalid(f"the file is larger than {MAX_BYTES[path.name]} bytes", where=str(path))


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Raise AdapterInvalid for any OSError in the block: files that vanish meanwhile, or may not be read."""
    try:
        yield
    except OSError as error:
        raise AdapterInvalid("the adapter's files cannot be read", where=str(folder), why=error.strerror) from error


def digest_of(parts: Mapping[str, str]) -> str:
    """The same from the sha256 of each file by name."""
    return hashlib.sha256("".join(f"{n}:{parts[n]}\n" for n in MAX_BYTES if n in parts).encode()).hexdigest()
