"""Keeps OpenMP's worker threads few: one set of them, for the thread that runs the steps.

Every thread that computes gets workers of its own, and they stay for as long as it lives. While there are no more of
them than cores, an idle worker waits for the next kernel awake; when there are more, they all sleep between any two
kernels. Waking them cost a decode step of one row a third of its time, measured with two cores.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


@cache
def share_library() -> ctypes.CDLL | None:
    """PyTorch's own copy of GNU's OpenMP library, made the one that others find too; None where it has none.

    With a second copy each set of workers would keep the other from its cores.
    """
    for path in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    return None


def use_one_thread() -> None:
    """Let the calling thread compute alone from now on."""
    torch.get_num_threads()  # else PyTorch would set its own number later
    if library := share_library():
        library.omp_set_num_threads(1)


def in_passing_thread(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function in a thread that ends with it, and its workers too: for what computes once, before the steps."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(function(*args, **kwargs))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name=function.__name__, daemon=True)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    return call
