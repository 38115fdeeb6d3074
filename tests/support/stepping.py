"""An engine without its thread: the test decides when a step runs, and time is counted in steps."""

from __future__ import annotations

import threading
import time

from atoll.adapters.bank import AdapterBank
from atoll.engine import EngineConfig, EngineStats, Request
from atoll.engine.core import EngineCore
from atoll.model.fuse import fuse
from atoll.model.load import BaseModel


class Stepper:
    """One engine core over a base of its own."""

    def __init__(self, base: BaseModel, *, num_slots: int, max_rank: int, config: EngineConfig) -> None:
        self._loaded = threading.Event()
        bank = AdapterBank(base.model, num_slots=num_slots, max_rank=max_rank)
        fuse(base.model)
        self._core = EngineCore(base, bank, config, on_loaded=self._loaded.set)

    @property
    def stats(self) -> EngineStats:
        return self._core.stats()

    def submit(self, request: Request) -> None:
        self._core.check(request)
        self._core.add(request, time.perf_counter())

    def abort(self, request_id: str) -> None:
        self._core.abort(request_id)

    def step(self) -> None:
        """Compute one batch; waits, without counting a step, while there is none because adapters are still loading."""
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s:
            self._loaded.clear()
            if self._core.step():
                return
            self._loaded.wait(0.02)
        raise TimeoutError("nothing to compute")

    def step_while_adapters_load(self) -> None:
        """Thirty batches, slowly enough for an adapter to be read meanwhile."""
        for _ in range(30):
            self.step()
            time.sleep(0.002)

    def run(self) -> None:
        """Step until every request has ended."""
        while self._core.has_requests:
            self.step()

    def close(self) -> None:
        self._core.close()
