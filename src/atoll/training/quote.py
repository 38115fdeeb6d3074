"""What training will take, quoted from its first passes or from a probe of them, and what it took in the end.

<run>/quote.json   the quote, kept by `atoll check` or made by `atoll tune` from its own first passes
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError

from atoll.config.base import ConfigModel
from atoll.config.prices import MachinePrice, cost_usd
from atoll.files import write_atomic
from atoll.training.trainer import AdapterRun, PassTime, Trainer

QUOTE_NAME = "quote.json"
_MAX_QUOTE_BYTES = 1024 * 1024
# A tenth of the passes were quicker than the low end of a quote's range and a tenth slower than its high end ...
_TAIL = 0.1
# ... but no quote claims to know better than this: passes to come have other examples, and machines other neighbours.
_LEAST_MARGIN = 0.1
# Of few passes a quote can be off by half of itself or, by the usual root, by a quarter with four.
_MARGIN_OF_ONE_PASS = 0.5
# What a token of validation takes of a training token's time until it has been measured: training computes activations
# forward and backward, 2 + 2 FLOP a parameter, or forward twice with checkpointing.
_VALIDATION_SHARE = {False: 2 / 4, True: 2 / 6}
# On a CPU memory goes on growing, as oneDNN keeps a kernel for every number of rows that it has met. SmolLM2-135M in
# bfloat16 took 0.58 GB above the loaded base after the first pass, 0.77 after 2, 1.15 after 5, 1.44 after 11, 2.25
# after 40 and 3.9 after 186: about by the third root of the passes.
_GROWTH = 1 / 3
_MAX_GROWING_PASSES = 200


class Span(ConfigModel):
    """A figure with the range it is expected in."""

    low: float
    expected: float
    high: float

    def times(self, factor: float) -> Span:
        return Span(low=self.low * factor, expected=self.expected * factor, high=self.high * factor)


class MemberQuote(ConfigModel):
    """One adapter's part of a quote. It bears the part of the run that its tokens take."""

    name: str
    num_steps: int
    num_train_tokens: int
    num_validation_tokens: int
    seconds: float
    cost_usd: float


class Quote(ConfigModel):
    """What a whole run is expected to take if nothing ends it early.

    fingerprint: the run's, of everything that decides its bits. seconds: of training, with validation, without loading.
    memory_bytes: at its peak; on a GPU the device's.
    """

    fingerprint: str
    made_from: Literal["probe", "first passes"]
    num_passes: int
    measured_seconds: float
    tokens_per_second: float
    seconds: Span
    cost_usd: Span
    memory_bytes: int
    machine: str
    usd_per_hour: float
    price_source: str
    price_date: str
    members: tuple[MemberQuote, ...]


class MemberBill(ConfigModel):
    """What one adapter took."""

    name: str
    num_steps: int
    num_tokens: int
    seconds: float
    cost_usd: float


class Bill(ConfigModel):
    """What a run took, over all its resumptions; the memory is that of the last one."""

    seconds: float
    cost_usd: float
    memory_bytes: int
    num_tokens: int
    tokens_per_second: float
    members: tuple[MemberBill, ...]


@dataclass(frozen=True)
class Measured:
    """Some first passes of a process. loaded_bytes: the most memory that it took before them."""

    passes: tuple[PassTime, ...]
    loaded_bytes: int
    device: torch.device


def time_span(
    passes: Sequence[PassTime], num_train_tokens: float, num_validation_tokens: float, *, checkpointing: bool
) -> Span:
    """The seconds that a plan of so many tokens will take, from the times of some of its passes.

    passes: at least one, the very first pass of the process first; it is left out where there are others.
    """
    counted = passes[1:] or passes
    rates = sorted(one.seconds / one.num_tokens for one in counted)
    expected = sum(one.seconds for one in counted) / sum(one.num_tokens for one in counted)
    validated = sum(one.num_validation_tokens for one in passes)
    validation = (
        sum(one.validation_seconds for one in passes) / validated
        if validated
        else expected * _VALIDATION_SHARE[checkpointing]
    )
    margin = max(_LEAST_MARGIN, _MARGIN_OF_ONE_PASS / math.sqrt(len(counted)))
    low = min(_quantile(rates, _TAIL) / expected, 1 - margin)
    high = max(_quantile(rates, 1 - _TAIL) / expected, 1 + margin)
    seconds = expected * num_train_tokens + validation * num_validation_tokens
    return Span(low=low, expected=1, high=high).times(seconds)


def make_quote(
    trainer: Trainer,
    measured: Measured,
    *,
    fingerprint: str,
    made_from: Literal["probe", "first passes"],
    price: MachinePrice,
) -> Quote:
    """Quote a trainer's whole plan from its first passes, of which there is at least one."""
    passes = measured.passes
    runs = trainer.runs
    planned = sum(run.planned_tokens for run in runs)
    seconds = time_span(
        passes,
        planned,
        sum(run.planned_validation_tokens for run in runs),
        checkpointing=trainer.config.gradient_checkpointing,
    )
    cost = seconds.times(cost_usd(1, price))
    return Quote(
        fingerprint=fingerprint,
        made_from=made_from,
        num_passes=len(passes),
        measured_seconds=sum(one.seconds + one.validation_seconds for one in passes),
        tokens_per_second=planned / seconds.expected,
        seconds=seconds,
        cost_usd=cost,
        memory_bytes=_memory_bytes(runs, measured, planned),
        machine=price.name,
        usd_per_hour=price.usd_per_hour,
        price_source=price.source,
        price_date=price.date,
        members=tuple(
            MemberQuote(
                name=run.job.name,
                num_steps=run.total_steps,
                num_train_tokens=round(run.planned_tokens),
                num_validation_tokens=run.planned_validation_tokens,
                seconds=seconds.expected * run.planned_tokens / planned,
                cost_usd=cost.expected * run.planned_tokens / planned,
            )
            for run in runs
        ),
    )


def make_bill(trainer: Trainer, price: MachinePrice, device: torch.device) -> Bill:
    """What a trainer has taken so far."""
    num_tokens = sum(run.counters.num_tokens for run in trainer.runs)
    shares = {run.job.name: run.counters.num_tokens / max(num_tokens, 1) for run in trainer.runs}
    return Bill(
        seconds=trainer.seconds,
        cost_usd=cost_usd(trainer.seconds, price),
        memory_bytes=peak_memory_bytes(device),
        num_tokens=num_tokens,
        tokens_per_second=num_tokens / trainer.seconds if trainer.seconds else 0.0,
        members=tuple(
            MemberBill(
                name=run.job.name,
                num_steps=run.counters.step,
                num_tokens=run.counters.num_tokens,
                # The adapters shared every pass, so each bears the part of the time that its tokens took.
                seconds=trainer.seconds * shares[run.job.name],
                cost_usd=cost_usd(trainer.seconds * shares[run.job.name], price),
            )
            for run in trainer.runs
        ),
    )


def keep_quote(folder: Path, quote: Quote) -> Path:
    """Write a run's quote. Returns the file."""
    path = folder / QUOTE_NAME
    write_atomic(path, quote.model_dump_json(indent=2) + "\n")
    return path


def kept_quote(folder: Path, fingerprint: str) -> Quote | None:
    """The quote of a run's folder, if it is one for the run of that fingerprint; else another can be made."""
    path = folder / QUOTE_NAME
    try:
        with open(path, "rb") as file:
            quote = Quote.model_validate_json(file.read(_MAX_QUOTE_BYTES))
    except (OSError, ValidationError):
        return None
    return quote if quote.fingerprint == fingerprint else None


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory so far: the device's on a GPU, else this whole process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _memory_bytes(runs: Sequence[AdapterRun], measured: Measured, planned_tokens: float) -> int:
    """The peak of the whole run: that of the passes, what adapters take only later, and on a CPU what still grows."""
    peak, device = peak_memory_bytes(measured.device), measured.device
    count = len(measured.passes)
    growth = 1.0
    if device.type == "cpu":
        num_passes = planned_tokens * count / sum(one.num_tokens for one in measured.passes)
        growth = max(1.0, min(num_passes, _MAX_GROWING_PASSES) / count) ** _GROWTH
    grown = measured.loaded_bytes + (peak - measured.loaded_bytes) * growth
    return round(grown) + sum(_bytes_to_come(run, device) for run in runs)


def _bytes_to_come(run: AdapterRun, device: torch.device) -> int:
    """What an adapter has not taken yet: AdamW's moments before its first step, its best weights before validation."""
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in run.optimizer.parameters)
    moments = 2 * num_bytes if run.counters.step == 0 else 0
    best = num_bytes if run.job.validation is not None and run.best is None and device.type != "cuda" else 0
    return moments + best


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between the two nearest; ordered: ascending, not empty."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
