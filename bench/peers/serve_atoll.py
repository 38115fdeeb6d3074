"""Atoll as a contender of `serve.py`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from protocol import Answer, Case, Settings, work

from atoll.adapters.peft_files import adapter_digest
from atoll.adapters.store import StoredAdapter
from atoll.config.fleet import QuantizationConfig
from atoll.engine import EngineConfig, Event, Request, SamplingParams, TokenEvent, build_engine
from atoll.model.load import DType, load_base


def load(settings: Settings) -> Callable[[Case], Answer]:
    # As `atoll serve --int8`: the output head in 8 bits too, as in llama.cpp's Q8_0. A base tuned in 8 bits keeps it.
    quantization = QuantizationConfig(bits=4) if settings.bits == 4 else None
    base = load_base(settings.base, dtype=cast("DType", settings.dtype), quantization=quantization)
    folders = [Path(folder) for folder in settings.adapters]
    adapters = [StoredAdapter(folder.name, 0, adapter_digest(folder), folder, None) for folder in folders]
    engine = build_engine(
        base,
        num_slots=max(1, len(adapters)),
        max_rank=settings.rank,
        bits=8 if settings.bits == 8 else None,
        config=EngineConfig(max_num_requests=settings.max_num_requests, max_length=settings.max_length),
    )
    engine.start()

    def run(case: Case) -> Answer:
        times: list[list[float]] = [[] for _ in case.prompts]
        requests = [_request(case, index, times[index], adapters) for index in range(len(case.prompts))]
        start = time.perf_counter()
        completions = engine.generate(requests)
        seconds = time.perf_counter() - start
        failed = [completion.error for completion in completions if completion.error]
        if failed:
            raise failed[0]
        first_s = max(moments[0] for moments in times) - start
        # Once every request has begun, the gaps of any one of them are the steps.
        steps = [later - moment for moment, later in zip(times[-1][1:], times[-1][2:], strict=False)]
        return Answer(
            seconds,
            [list(completion.token_ids) for completion in completions],
            first_s,
            statistics.median(steps) if steps else None,
        )

    return run


def _request(case: Case, index: int, times: list[float], adapters: list[StoredAdapter]) -> Request:
    def on_event(event: Event) -> None:
        if isinstance(event, TokenEvent):
            times.append(time.perf_counter())

    return Request(
        prompt_ids=tuple(case.prompts[index]),
        sampling=SamplingParams(max_new_tokens=case.num_new, ignore_eos=True),
        adapter=adapters[index % case.num_adapters] if case.num_adapters else None,
        on_event=on_event,
    )


if __name__ == "__main__":
    work(load)
