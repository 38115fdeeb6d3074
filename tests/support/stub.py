"""An engine that answers at once with made-up tokens: for tests of what stands before an engine."""

from __future__ import annotations

import queue
import threading
import time
from pathlib import Path
from types import TracebackType

from atoll.adapters.catalog import AdapterCatalog
from atoll.adapters.store import AdapterStore, StoredAdapter
from atoll.adapters.tiers import TieredAdapter
from atoll.engine import EngineStats, ErrorEvent, FinishEvent, Request, TokenEvent
from atoll.engine.request import Timings
from atoll.errors import AtollError


class StubEngine:
    """Gives every request `max_new_tokens` tokens, one after the other, from a thread of its own.

    pause_s: before each token. error: what every request fails with, if anything. text: of each token.
    """

    max_length = 512

    def __init__(self, pause_s: float = 0.0, error: AtollError | None = None, text: str = "x") -> None:
        self.text = text
        self.pause_s = pause_s
        self.error = error
        self.num_submitted = 0
        self.last_request: Request | None = None
        self.num_aborted = 0
        self._aborted: set[str] = set()
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="stub-engine", daemon=True)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, request: Request) -> None:
        self.num_submitted += 1
        self.last_request = request
        self._requests.put(request)

    def abort(self, request_id: str) -> None:
        self._aborted.add(request_id)
        self.num_aborted += 1

    def pin(self, adapter: StoredAdapter) -> None:
        raise NotImplementedError("this engine holds no adapters")

    def unpin(self, name: str) -> None:
        raise NotImplementedError("this engine holds no adapters")

    def stats(self) -> EngineStats:
        return EngineStats(max_rank=8)

    def adapters(self) -> list[TieredAdapter]:
        return []

    def __enter__(self) -> StubEngine:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._requests.put(None)
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            self._answer(request)

    def _answer(self, request: Request) -> None:
        if self.error is not None:
            request.on_event(ErrorEvent(request_id=request.request_id, error=self.error))
            return
        started_s = time.perf_counter()
        num_tokens = request.sampling.max_new_tokens
        for _ in range(num_tokens):
            if self.pause_s:
                time.sleep(self.pause_s)
            if request.request_id in self._aborted:
                return
            request.on_event(TokenEvent(request_id=request.request_id, token_id=5, text=self.text, logprob=-1.0))
        total_s = time.perf_counter() - started_s
        request.on_event(
            FinishEvent(
                request_id=request.request_id,
                finish_reason="length",
                stop_reason=None,
                text=self.text * num_tokens,
                token_ids=(5,) * num_tokens,
                num_prompt_tokens=len(request.prompt_ids),
                seed=None,
                timings=Timings(queue_s=0.0, first_token_s=total_s, total_s=total_s),
            )
        )


def empty_catalog(folder: Path) -> AdapterCatalog:
    """A store without adapters."""
    return AdapterCatalog(AdapterStore(folder / "store"))
