"""What was made of files, kept until they change."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

Made = TypeVar("Made")


class FileCache(Generic[Made]):
    """By path, the latest `max_files`; safe in all threads.

    Who goes through more files than there are places, always in one order, never meets one that is kept.
    """

    def __init__(self, max_files: int) -> None:
        self._max_files = max_files
        self._lock = threading.Lock()
        self._kept: OrderedDict[Path, tuple[tuple[int, int], Made]] = OrderedDict()

    def get(self, path: Path, make: Callable[[], Made]) -> Made:
        """What `make` has made of the file as it is now. Raises FileNotFoundError, and what `make` raises."""
        stat = path.stat()
        version = stat.st_mtime_ns, stat.st_size
        with self._lock:
            known = self._kept.get(path)
            if known is not None and known[0] == version:
                self._kept.move_to_end(path)
                return known[1]
        made = make()
        with self._lock:
            self._kept[path] = version, made
            self._kept.move_to_end(path)
            while len(self._kept) > self._max_files:
                self._kept.popitem(last=False)
        return made
