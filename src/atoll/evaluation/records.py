"""What is written of a run beside the answers: who was evaluated on what, by whom against, and what it took."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch

import atoll
from atoll.config.fleet import QuantizationConfig
from atoll.config.prices import MachinePrice, cost_usd, hourly_price
from atoll.engine import Engine
from atoll.evaluation.asking import Ask, Asked, Line, LocalAsk, Prepared
from atoll.evaluation.contenders import Remote
from atoll.evaluation.journal import Entry
from atoll.evaluation.outputs import BaseRecord, ContenderRecord, MemberRecord, Output, RunRecord
from atoll.evaluation.sampling import SPLIT
from atoll.tasks.dataset import data_digest

_VERSIONS_OF = ("torch", "transformers", "tokenizers", "numpy")
_MAX_MODELS_SHOWN = 3


@dataclass(frozen=True)
class Answers:
    """Every answer by its key: the engine's, and those of remote contenders with their costs.

    lost_usd: by contender, what providers may have billed for answers that never came.
    """

    local: Mapping[str, Entry]
    remote: Mapping[str, Entry]
    lost_usd: Mapping[Remote, float]

    def to(self, ask: Ask) -> Entry:
        """The answer to what was asked."""
        if isinstance(ask, Entry):
            return ask
        return self.local[ask.key] if isinstance(ask, LocalAsk) else self.remote[ask.key]

    @property
    def local_seconds(self) -> float:
        """What the engine took for all of its answers, earlier runs' included."""
        return sum(entry.seconds for entry in self.local.values())

    @property
    def num_local_tokens(self) -> int:
        return sum(_num_tokens(entry) for entry in self.local.values())


def outputs(item: Prepared, answers: Answers) -> dict[str, list[Output]]:
    """A member's answers by contender, in the order of its examples."""
    return {
        name: [_output(item, asked, ask, answers.to(ask)) for asked, ask in zip(item.asked, line.asks, strict=True)]
        for name, line in item.lines.items()
    }


def _output(item: Prepared, asked: Asked, ask: Ask, entry: Entry) -> Output:
    is_model = not isinstance(ask, Entry)
    ids = ask.prompt_ids if isinstance(ask, LocalAsk) else asked.prompt.ids if is_model and asked.prompt else ()
    return Output(
        example_id=asked.example.example_id,
        prompt_digest=_prompt_digest(ids) if len(ids) else "",
        prediction=entry.prediction,
        reference=asked.example.row[item.member.task.target_column],
        columns=asked.example.columns,
        finish_reason=entry.finish_reason,
        num_prompt_tokens=entry.num_prompt_tokens,
        num_cut_tokens=asked.prompt.num_cut_tokens if asked.prompt and is_model else 0,
        num_new_tokens=entry.num_new_tokens,
        error=entry.error,
    )


def member_record(
    item: Prepared, answers: Answers, price: MachinePrice, *, output_digests: dict[str, str], inputs_digest: str
) -> MemberRecord:
    """What is known of a member before its answers are scored."""
    member, task = item.member, item.member.task
    return MemberRecord(
        name=member.adapter.name,
        adapter_id=member.adapter.id,
        adapter_digest=member.adapter.digest,
        task=task.name,
        category=task.category,
        metrics=task.metrics,
        published=task.published,
        split=SPLIT,
        data_digest=data_digest(item.sample.examples),
        num_examples=len(item.asked),
        max_length=member.contract.max_length,
        max_new_tokens=task.generation.max_new_tokens,
        stop=task.generation.stop,
        training=member.contract.training,
        notes=item.notes,
        labels=task.labels,
        num_rows=item.sample.num_rows,
        num_duplicates=item.sample.num_duplicates,
        num_leaked=item.sample.num_leaked,
        hub_dataset=item.sample.hub_dataset,
        contenders=tuple(_contender_record(name, line, answers, price) for name, line in item.lines.items()),
        output_digests=output_digests,
        inputs_digest=inputs_digest,
    )


def _contender_record(name: str, line: Line, answers: Answers, price: MachinePrice) -> ContenderRecord:
    entries = {ask.key: answers.to(ask) for ask in line.asks if not isinstance(ask, Entry)}
    if line.remote is not None:
        seconds = sum(entry.seconds for entry in entries.values())
        # A request that failed for good was not billed.
        costs = [0.0 if entry.error and entry.cost_usd is None else entry.cost_usd for entry in entries.values()]
        known = [cost for cost in costs if cost is not None]
        spent_usd = sum(known) if len(known) == len(costs) else None
    else:
        share = sum(map(_num_tokens, entries.values())) / max(1, answers.num_local_tokens)
        seconds = answers.local_seconds * share
        spent_usd = cost_usd(seconds, price)
    return ContenderRecord(
        name=name,
        kind=line.kind,
        detail=line.detail if line.remote is None else _remote_detail(line, line.remote, entries, answers),
        cost_usd=spent_usd,
        seconds=round(seconds, 3),
        num_prompt_tokens=sum(entry.num_prompt_tokens for entry in entries.values()),
        num_new_tokens=sum(entry.num_new_tokens for entry in entries.values()),
    )


def _remote_detail(line: Line, remote: Remote, entries: Mapping[str, Entry], answers: Answers) -> str:
    """The model and its place, which models say that they have answered, and what may have been paid in vain."""
    models = sorted({entry.model for entry in entries.values() if entry.model} - {remote.model})
    shown = ", ".join(models[:_MAX_MODELS_SHOWN]) + (", ..." if len(models) > _MAX_MODELS_SHOWN else "")
    detail = f"{line.detail}, answered by {shown}" if models else line.detail
    lost_usd = answers.lost_usd.get(remote, 0.0)
    return f"{detail}; at most ${lost_usd:.4f} more for answers that were lost on the way" if lost_usd else detail


def run_record(
    engine: Engine,
    members: tuple[MemberRecord, ...],
    answers: Answers,
    price: MachinePrice,
    *,
    num_steps: int,
    fleet: str,
    limit: int | None,
    seed: int,
    quantization: QuantizationConfig | None,
) -> RunRecord:
    """What is known of the whole run: the engine's time and tokens, and the cost of that and of all providers."""
    base = engine.base
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS_OF}
    remote_usd = sum(entry.cost_usd or 0.0 for entry in answers.remote.values())
    return RunRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        fleet=fleet,
        base=BaseRecord(
            name=base.name,
            digest=base.digest,
            num_params=base.num_params,
            dtype=str(base.dtype).removeprefix("torch."),
            device=_machine(engine) or base.device.type,
            quantization_bits=quantization.bits if quantization else None,
        ),
        limit=limit,
        seed=seed,
        members=members,
        seconds=round(answers.local_seconds, 3),
        num_prompt_tokens=sum(entry.num_prompt_tokens for entry in answers.local.values()),
        num_new_tokens=sum(entry.num_new_tokens for entry in answers.local.values()),
        num_steps=num_steps,
        cost_usd=cost_usd(answers.local_seconds, price) + remote_usd,
        price=f"{price.name}, ${price.usd_per_hour}/h, {price.date}",
        max_batch_tokens=engine.config.max_batch_tokens,
        max_num_requests=engine.config.max_num_requests,
        versions={"atoll": atoll.__version__, "python": platform.python_version()} | versions,
    )


def price_of(engine: Engine) -> MachinePrice:
    """An hour of the machine that the engine runs on."""
    return hourly_price(_machine(engine), device=engine.base.device.type)


def _machine(engine: Engine) -> str | None:
    device = engine.base.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def _num_tokens(entry: Entry) -> int:
    return entry.num_prompt_tokens + entry.num_new_tokens


def _prompt_digest(ids: Sequence[int]) -> str:
    return "sha256:" + hashlib.sha256(np.asarray(ids, dtype="<i8").tobytes()).hexdigest()
