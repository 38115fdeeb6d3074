"""Files that look unchanged and are not."""

from __future__ import annotations

import os
from pathlib import Path


def unreadable_as_it_was(path: Path) -> None:
    """Make a file of lines unreadable; its size and its time stay."""
    stat = path.stat()
    path.write_bytes(b"!" * (stat.st_size - 1) + b"\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
