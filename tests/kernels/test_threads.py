"""numba's threads are PyTorch's."""

from __future__ import annotations

import subprocess
import sys
import threading

import numba
import torch

from atoll.kernels.cpu.threads import num_threads


def test_numba_follows_pytorch_on_every_thread() -> None:
    seen: list[tuple[int, int]] = []

    def look() -> None:
        for wanted in (1, 2, 1):
            torch.set_num_threads(wanted)
            seen.append((num_threads(), numba.get_num_threads()))
            assert num_threads(at_most=1) == numba.get_num_threads() == 1

    look()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    possible = min(2, numba.config.NUMBA_NUM_THREADS)
    assert seen == [(1, 1), (2, possible), (1, 1)] * 2
    assert numba.threading_layer() == "omp"


def test_starting_the_pool_leaves_pytorchs_threads_alone() -> None:
    program = "import torch; torch.set_num_threads(1); import atoll.kernels.cpu.threads; print(torch.get_num_threads())"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "1"
