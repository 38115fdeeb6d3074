"""CUDA graphs: many kernels that one call launches."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Recorder:
    """Graphs that are repeated one after another, never at once: all use the same memory for what lies between."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Callable[[], None]) -> Callable[[], None]:
        """Run `compute` once as it is, record what it launches, and return what launches all of it again.

        The kernels read and write the same memory each time; what they are given changes by writing there. `compute`
        may not wait for the device. Raises RuntimeError where it does, or where a kernel cannot be recorded.
        """
        own, stream = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(own)
        with torch.cuda.stream(stream):
            compute()  # compiles kernels and makes handles, which is not possible while recording
        own.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Adapters are copied to the device by other threads meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            compute()
        return graph.replay
