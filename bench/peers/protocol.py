"""How `serve.py` talks to the engines that it compares: JSON lines with one process for each. Standard library only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Settings:
    """What a worker loads: the base as a folder of safetensors, the adapters as PEFT folders (or GGUF files)."""

    base: str
    adapters: list[str]
    rank: int
    dtype: str
    bits: int | None
    max_num_requests: int
    max_length: int
    num_threads: int
    eager: bool = False


@dataclass(frozen=True)
class Case:
    """Requests that are there at once, greedy and without end tokens. Request i uses adapter i % num_adapters."""

    num_adapters: int
    num_new: int
    prompts: list[list[int]]


@dataclass(frozen=True)
class Answer:
    """seconds: until the last token of all. first_s: until every request had its first one, where the engine tells.

    step_s: the median time of a decode step with all requests in it, where the engine tells.
    """

    seconds: float
    token_ids: list[list[int]]
    first_s: float | None = None
    step_s: float | None = None


def work(load: Callable[[Settings], Callable[[Case], Answer]]) -> None:
    """The main loop of a worker: load once, then answer one case after another until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the engine prints goes to the log
    run = load(Settings(**json.loads(sys.argv[1])))
    print("{}", file=answers)
    for line in sys.stdin:
        print(json.dumps(asdict(run(Case(**json.loads(line))))), file=answers)
