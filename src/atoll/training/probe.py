"""A probe: some real training passes of a fleet, timed, whose adapters are thrown away."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from atoll.config.fleet import FleetConfig
from atoll.model.load import BaseModel
from atoll.tasks.task import find_task
from atoll.training.prepare import fingerprint_of, job_of, prepare, price_of
from atoll.training.quote import Measured, Quote, make_quote, peak_memory_bytes
from atoll.training.trainer import PassTime, Trainer

PROBE_S = 20.0


def probe_fleet(
    fleet: FleetConfig,
    base: BaseModel,
    *,
    data_root: Path | None = None,
    budget_s: float = PROBE_S,
    clock: Callable[[], float] = time.monotonic,
) -> Quote:
    """Quote a fleet from its own first passes on the loaded base: its examples, its adapters, its token budget.

    Ends after the pass in which `budget_s` is reached, so one pass is always made. The base is unusable for other
    adapters afterwards. Raises what training would raise before it begins.
    """
    prepared = [prepare(member, find_task(member.task_ref), base, data_root) for member in fleet.members()]
    passes: list[PassTime] = []

    def note(one: PassTime) -> None:
        passes.append(one)
        if sum(each.seconds + each.validation_seconds for each in passes) >= budget_s:
            trainer.request_stop()

    loaded_bytes = peak_memory_bytes(base.device)
    trainer = Trainer(base, [job_of(item, base) for item in prepared], fleet.trainer, on_pass=note, clock=clock)
    trainer.train()
    return make_quote(
        trainer,
        Measured(tuple(passes), loaded_bytes, base.device),
        fingerprint=fingerprint_of(fleet, base, prepared),
        made_from="probe",
        price=price_of(base.device),
    )
