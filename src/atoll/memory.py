"""Main memory, as this process may use it: in a container that is often far less than the machine has."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil


class Memory(NamedTuple):
    """Bytes. available: what this process may still take."""

    total: int
    available: int


class _Files(NamedTuple):
    """Where a version of cgroups keeps its folders, and their files' names. cache: of what can be dropped at once."""

    root: str
    limit: str
    used: str
    cache: str


_V1 = _Files("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def main_memory(root: Path = Path("/")) -> Memory:
    """The machine's, or less where a limit of a cgroup holds: this process's own or one above it, as of a container."""
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    cgroups: list[str] = []
    with suppress(OSError):  # not Linux
        cgroups = (root / "proc/self/cgroup").read_text().splitlines()
    for line in cgroups:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        files = _V1 if controllers else _V2
        own = Path(path.lstrip("/"))
        for folder in (root / files.root / part for part in (own, *own.parents)):
            with suppress(OSError, ValueError):  # no such file, as in the root of v2; or "max"
                limit = int((folder / files.limit).read_text())
                total = min(total, limit)
                available = min(available, limit - _used(folder, files))
    return Memory(total, max(0, min(total, available)))


def _used(folder: Path, files: _Files) -> int:
    """Without the page cache that is dropped before anything is killed. Raises OSError or ValueError."""
    used = int((folder / files.used).read_text())
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return max(0, used - int(stat.get(files.cache, 0)))
