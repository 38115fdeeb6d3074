"""CUDA graphs: many kernels that one call launches."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Recorder:
    """Graphs that are repeated one after another, never at once: all use the same memory for what lies between."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        # One for all: cuBLAS keeps a workspace for every stream that it has met.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, compute: Callable[[], None]) -> Callable[[], None]:
        """Run `compute` once as it is, record what it launches, and return what launches all of it again.

        The kernels read and write the same memory each time; what they are given changes by writing there, and the
        caller has to keep it. `compute` may not wait for the device. Raises what `compute` raises, and RuntimeError
        where it waits, or where a kernel cannot be recorded.
        """
        with torch.cuda.device(self._device):
            own = torch.cuda.current_stream()
            self._stream.wait_stream(own)
            with torch.cuda.stream(self._stream):
                compute()  # compiles kernels and makes handles, which is not possible while recording
            own.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            try:
                # Adapters are copied to the device by other threads meanwhile.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    compute()
            finally:
                torch.cuda.set_stream(own)  # a recording that fails would leave this thread on the other one
        return graph.replay
