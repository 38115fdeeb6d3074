"""How many threads a step may use while other programs want the cores as well.

The threads of a kernel wait for one another, awake. Where another program has one of their cores, all of them wait for
the scheduler to give it back, some hundred times in a step: with a browser beside it, an engine with two threads on two
cores made 10 tokens/s instead of 450, and with one thread 160. So a step leaves out the cores that others use.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

import psutil
import torch

LOOK_EVERY_S = 0.25
_NOT_BUSY = {"idle", "iowait", "guest", "guest_nice"}  # guests are counted as their host's time already
_IGNORED = 0.25
"""Cores' worth of work of others that is not worth a thread."""
_CALM_S = 1.0
"""Seconds on end that must find room before there are more threads again."""
_PAUSE_S = 1.0
_WORKED = 0.2
"""Looks further apart than _PAUSE_S say what others used beside this process only if it had so much of a core."""


class Use(NamedTuple):
    """Seconds until now. busy: of all cores that this process may run on, own: of this process."""

    wall: float
    busy: float
    own: float


def own_cores() -> set[int]:
    """Numbers of the cores that this process may run on: all of them where the system does not say (macOS)."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def read_use() -> Use:
    """What the operating system has counted so far."""
    cores = psutil.cpu_times(percpu=True)
    mine = [cores[core] for core in own_cores() if core < len(cores)]
    busy = sum(value for times in mine for name, value in times._asdict().items() if name not in _NOT_BUSY)
    own = psutil.Process().cpu_times()
    return Use(time.monotonic(), busy, own.user + own.system)


def threads_beside(others: float, *, most: int, num_cores: int) -> int:
    """Threads for this process: at most `most`, and at least one, where others use `others` cores of `num_cores`."""
    return max(1, min(most, int(num_cores - others + _IGNORED)))


class Cores:
    """Keeps the calling thread's number of OpenMP threads within what other programs leave. Belongs to that thread."""

    def __init__(self, read: Callable[[], Use] = read_use, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = torch.get_num_threads()
        self.num_threads = self.most
        self._num_cores = max(len(own_cores()), self.most)
        self._read, self._clock = read, clock
        self._last = read()
        self._calm_s = 0.0

    def adapt(self) -> None:
        """Look, if the last look is long enough ago, and change the number of threads if it does not fit any more."""
        if self.most == 1 or self._clock() - self._last.wall < LOOK_EVERY_S:
            return
        last, self._last = self._last, self._read()
        wall, busy, own = (now - before for now, before in zip(self._last, last, strict=True))
        if wall > _PAUSE_S and own < _WORKED * wall:
            self._calm_s = 0.0
            return
        others = max(0.0, busy - own) / wall
        room = threads_beside(others, most=self.most, num_cores=self._num_cores)
        self._calm_s = self._calm_s + wall if room > self.num_threads else 0.0
        if room < self.num_threads or self._calm_s >= _CALM_S:
            self.num_threads, self._calm_s = room, 0.0
            torch.set_num_threads(room)
