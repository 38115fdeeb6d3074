"""Beside real programs that compute, a step has fewer threads, and all of them again when those have ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest
import torch

from atoll.kernels.cores import LOOK_EVERY_S, Cores

LIMIT_S = 15.0


def seconds_until(cores: Cores, num_threads: int) -> float:
    """How long it takes until a thread that looks all the time has `num_threads`; computes meanwhile."""
    start = time.monotonic()
    x = torch.ones(256, 256)
    while torch.get_num_threads() != num_threads and time.monotonic() - start < LIMIT_S:
        x @ x
        cores.adapt()
    return time.monotonic() - start


def test_threads_follow_what_other_programs_leave() -> None:
    most = len(os.sched_getaffinity(0))
    if most == 1:
        pytest.skip("one core leaves nothing to choose")
    before = torch.get_num_threads()
    torch.set_num_threads(most)
    cores = Cores()
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(most)]
    try:
        assert seconds_until(cores, 1) < LIMIT_S
        for other in others:
            other.kill()
            other.wait()
        took_s = seconds_until(cores, most)
        if took_s >= LIMIT_S and (used := psutil.cpu_percent(interval=1.0) / 100 * (psutil.cpu_count() or 1)) > 0.25:
            pytest.skip(f"other programs use {used:.1f} cores of this machine")
        assert LOOK_EVERY_S < took_s < LIMIT_S
    finally:
        for other in others:
            other.kill()
            other.wait()
        torch.set_num_threads(before)
