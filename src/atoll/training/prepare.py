"""From a fleet's members to their data as tokens, and to the jobs of a trainer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from atoll.config.fleet import FleetConfig, FleetMember, auto_learning_rate
from atoll.config.prices import MachinePrice, hourly_price
from atoll.config.task import TaskConfig
from atoll.model.load import BaseModel
from atoll.tasks.dataset import Example, data_digest, load_split
from atoll.text.prompt import PromptRenderer, length_limit
from atoll.training.data import TokenizedSplit, tokenize
from atoll.training.trainer import TrainingJob


@dataclass(frozen=True)
class Prepared:
    """One member with its data as tokens."""

    member: FleetMember
    task: TaskConfig
    renderer: PromptRenderer
    max_length: int
    train: TokenizedSplit
    validation: TokenizedSplit | None
    train_digest: str
    validation_digest: str | None


def prepare(member: FleetMember, task: TaskConfig, base: BaseModel, data_root: Path | None) -> Prepared:
    """Read and tokenise the examples that a member trains and validates on. Raises ConfigError or DataError."""
    data = member.data
    train = load_split(task, "train", data_root=data_root, limit=data.limit, seed=data.seed)
    validation = load_split(task, "validation", data_root=data_root, limit=data.validation_limit, seed=data.seed)

    def renderer(max_length: int | None) -> PromptRenderer:
        return PromptRenderer(base.tokenizer, task.prompt, task.input_columns, task.target_column, max_length)

    max_length = length_limit(
        renderer(None), _rows(train), max_length=data.max_length, model_max_length=base.max_length
    )
    limited = renderer(max_length)
    tokenized = tokenize(_rows(train), limited).within(data.max_tokens)
    return Prepared(
        member, task, limited, max_length, tokenized,
        tokenize(_rows(validation), limited) if validation else None,
        data_digest(train[: len(tokenized.examples)]), data_digest(validation) if validation else None,
    )  # fmt: skip


def job_of(item: Prepared, base: BaseModel) -> TrainingJob:
    """What a trainer needs to train a member."""
    rate = item.member.trainer.learning_rate
    peak = auto_learning_rate(base.num_params) if rate == "auto" else rate
    return TrainingJob(item.member.name, item.member.adapter, item.member.trainer, peak, item.train, item.validation)


def fingerprint_of(fleet: FleetConfig, base: BaseModel, prepared: Sequence[Prepared]) -> str:
    """Everything that decides the bits of a run."""
    parts = [fleet.model_dump_json(), base.digest, str(base.dtype), base.device.type]
    for item in prepared:
        parts += [item.task.model_dump_json(), item.train_digest, item.validation_digest or "", str(item.max_length)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def price_of(device: torch.device) -> MachinePrice:
    """What an hour of the machine with this device costs."""
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return hourly_price(machine, device=device.type)


def _rows(examples: Sequence[Example]) -> list[Mapping[str, str]]:
    return [example.row for example in examples]
