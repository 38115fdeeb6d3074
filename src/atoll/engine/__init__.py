"""Continuous batching over one base model and many adapters: schedule -> run -> postprocess.

engine     thread-safe front: submit, abort, generate
core       the step; owns the others, on one thread
scheduler  decides what each step computes; owns blocks and slots, no tensors (state: what it notes)
fairness   whose turn it is, between tenants and adapters (accounts: who has got how much; preemption: who gives way)
blocks     the pool of KV blocks and what is cached in them (prefix: their names by content)
runner     runs the model over it (batch makes the tensors); owns the KV cache, decides nothing
sampler    logits -> tokens (penalties: what changes logits first)
output     one request's text, its end and its events
"""

from atoll.engine.core import EngineConfig, EngineStats
from atoll.engine.engine import Engine, build_engine
from atoll.engine.request import (
    Completion,
    ErrorEvent,
    Event,
    FinishEvent,
    FinishReason,
    PromptToken,
    Request,
    SamplingParams,
    StopReason,
    Timings,
    TokenEvent,
)

__all__ = [
    "Completion",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "ErrorEvent",
    "Event",
    "FinishEvent",
    "FinishReason",
    "PromptToken",
    "Request",
    "SamplingParams",
    "StopReason",
    "Timings",
    "TokenEvent",
    "build_engine",
]
