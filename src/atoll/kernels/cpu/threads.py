# mypy: disable-error-code="attr-defined, no-untyped-call"
"""The one place that says how numba's kernels use threads: as many as PyTorch, from the same OpenMP pool."""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch
from numba import config, types
from numba.np.ufunc import parallel

from atoll.kernels.openmp import share_library

# PyTorch's pool: two would fight over the cores, and numba's "workqueue" dies when two threads use it at once.
config.THREADING_LAYER = "omp"

_MOST: int = config.NUMBA_NUM_THREADS
_set = threading.local()


set_num_threads: Any = types.ExternalFunction("set_num_threads", types.void(types.intc))
"""The same from inside of a kernel, which has to set it back; numba.set_num_threads would keep it from being cached."""


def num_threads(at_most: int = sys.maxsize) -> int:
    """Threads for the kernel that the calling thread starts next: PyTorch's, or `at_most` for little work.

    Little work is better done alone: where other programs keep the cores busy, a second thread may be long in coming.
    """
    wanted: int = min(torch.get_num_threads(), _MOST, at_most)
    # numba keeps the number for each thread, and so do we: to set it takes longer than some kernels.
    if getattr(_set, "num_threads", 0) != wanted:
        # numba.set_num_threads checks its argument for longer still, and calls this.
        parallel._set_num_threads(wanted)
        _set.num_threads = wanted
    return wanted


def _start() -> None:
    share_library()
    # Starting the pool sets OpenMP's number of threads, and with it PyTorch's, to all cores.
    wanted = torch.get_num_threads()
    parallel._launch_threads()
    torch.set_num_threads(wanted)


_start()
