"""From a fleet file to adapters in the store: read, tokenise, train together, publish."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import atoll
from atoll.adapters.contract import CONTRACT_NAME, AdapterContract, BaseRef, TrainingRecord
from atoll.adapters.peft_io import CONFIG_NAME, write_adapter
from atoll.adapters.store import CARD_NAME, AdapterStore, StoredAdapter
from atoll.config.fleet import FleetConfig, FleetMember, auto_learning_rate
from atoll.config.prices import MachinePrice, cost_usd, hourly_price
from atoll.config.task import TaskConfig
from atoll.errors import ConfigError
from atoll.files import write_atomic
from atoll.model.load import BaseModel, load_base
from atoll.tasks.dataset import Example, data_digest, load_split
from atoll.tasks.task import find_task
from atoll.text.prompt import PromptRenderer, length_limit
from atoll.training.card import model_card
from atoll.training.checkpoint import latest_checkpoint, load_checkpoint, remove_checkpoints
from atoll.training.data import TokenizedSplit, tokenize
from atoll.training.trainer import AdapterRun, Progress, Trainer, TrainingJob

Report = Callable[[dict[str, Any]], None]


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


@dataclass(frozen=True)
class TuneResult:
    """finished is False when the run was asked to stop; it then has a checkpoint and no adapters."""

    finished: bool
    adapters: tuple[StoredAdapter, ...]
    run_folder: Path
    seconds: float
    cost_usd: float


class TuneRun:
    """One `atoll tune`. `request_stop` may be called from a signal handler while `run` is working."""

    def __init__(
        self,
        fleet: FleetConfig,
        *,
        run_folder: Path,
        store: AdapterStore,
        data_root: Path | None = None,
        report: Report = lambda _: None,
    ) -> None:
        self._fleet = fleet
        self._run_folder = run_folder
        self._store = store
        self._data_root = data_root
        self._report = report
        self._trainer: Trainer | None = None
        self._stop_requested = False

    def request_stop(self) -> None:
        """Stop after the pass that is running, with a checkpoint."""
        self._stop_requested = True
        if self._trainer is not None:
            self._trainer.request_stop()

    def run(self, *, resume: bool = False) -> TuneResult:
        """Train all members together and publish them. Raises AtollError with nothing half-written."""
        checkpoint = self._find_checkpoint(resume)
        tasks = [find_task(member.task_ref) for member in self._fleet.members()]
        base = load_base(self._fleet.base_model, dtype=self._fleet.dtype, quantization=self._fleet.quantization)
        self._report({"event": "base", "name": base.name, "digest": base.digest, "num_params": base.num_params})
        prepared = [
            self._prepare(member, task, base) for member, task in zip(self._fleet.members(), tasks, strict=True)
        ]
        trainer = self._make_trainer(base, prepared)
        fingerprint = _fingerprint(self._fleet, base, prepared)
        if checkpoint is not None:
            self._resume(trainer, checkpoint, fingerprint)
        write_atomic(self._run_folder / "run.json", json.dumps({"fingerprint": fingerprint}) + "\n")
        if self._stop_requested:
            trainer.request_stop()
        price = _price(base.device)
        if not trainer.train():
            return TuneResult(False, (), self._run_folder, trainer.seconds, cost_usd(trainer.seconds, price))
        trainer.finish()
        adapters = tuple(
            self._publish(base, trainer, run, item, price) for run, item in zip(trainer.runs, prepared, strict=True)
        )
        remove_checkpoints(self._run_folder)
        return TuneResult(True, adapters, self._run_folder, trainer.seconds, cost_usd(trainer.seconds, price))

    def _find_checkpoint(self, resume: bool) -> Path | None:
        checkpoint = latest_checkpoint(self._run_folder)
        if checkpoint is not None and not resume:
            raise ConfigError(
                "the run folder holds the checkpoint of an unfinished run",
                where=str(self._run_folder),
                mend="add --resume to go on from it, or remove the folder to start again",
            )
        return checkpoint

    def _prepare(self, member: FleetMember, task: TaskConfig, base: BaseModel) -> Prepared:
        data = member.data
        train = load_split(task, "train", data_root=self._data_root, limit=data.limit, seed=data.seed)
        validation = load_split(
            task, "validation", data_root=self._data_root, limit=data.validation_limit, seed=data.seed
        )

        def renderer(max_length: int | None) -> PromptRenderer:
            return PromptRenderer(base.tokenizer, task.prompt, task.input_columns, task.target_column, max_length)

        max_length = length_limit(
            renderer(None), _rows(train), max_length=data.max_length, model_max_length=base.max_length
        )
        limited = renderer(max_length)
        tokenized = tokenize(_rows(train), limited).within(data.max_tokens)
        prepared = Prepared(
            member, task, limited, max_length, tokenized,
            tokenize(_rows(validation), limited) if validation else None,
            data_digest(train[: len(tokenized.examples)]), data_digest(validation) if validation else None,
        )  # fmt: skip
        self._report(
            {
                "event": "data",
                "adapter": member.name,
                "task": task.name,
                "num_examples": len(tokenized.examples),
                "num_validation": len(validation),
                "num_tokens": prepared.train.num_tokens,
                "max_length": max_length,
                "num_cut": prepared.train.num_cut,
            }
        )
        return prepared

    def _make_trainer(self, base: BaseModel, prepared: Sequence[Prepared]) -> Trainer:
        jobs = []
        for item in prepared:
            rate = item.member.trainer.learning_rate
            peak = auto_learning_rate(base.num_params) if rate == "auto" else rate
            jobs.append(
                TrainingJob(
                    item.member.name, item.member.adapter, item.member.trainer, peak, item.train, item.validation
                )
            )
        self._trainer = Trainer(
            base, jobs, self._fleet.trainer, run_folder=self._run_folder, on_progress=self._report_progress
        )
        for run in self._trainer.runs:
            self._report({"event": "plan", "adapter": run.job.name, "total_steps": run.total_steps,
                          "planned_tokens": run.planned_tokens, "learning_rate": run.job.learning_rate})  # fmt: skip
        return self._trainer

    def _resume(self, trainer: Trainer, checkpoint: Path, fingerprint: str) -> None:
        path = self._run_folder / "run.json"
        saved = json.loads(path.read_bytes())["fingerprint"] if path.is_file() else None
        if saved != fingerprint:
            raise ConfigError(
                "the checkpoint belongs to a run with other settings, data or base model",
                where=str(checkpoint),
                why="an exact resume needs the same inputs",
                mend="restore the fleet file and data of that run, or remove the folder to start again",
            )
        trainer.restore(*load_checkpoint(checkpoint))
        self._report({"event": "resumed", "checkpoint": str(checkpoint), "num_passes": trainer.num_passes})

    def _report_progress(self, progress: Progress) -> None:
        self._report({"event": "progress", "time": time.time()} | asdict(progress))

    def _publish(
        self, base: BaseModel, trainer: Trainer, run: AdapterRun, item: Prepared, price: MachinePrice
    ) -> StoredAdapter:
        folder = self._run_folder / "adapters" / run.job.name
        write_adapter(folder, run.weights, run.job.adapter, base_model=base.name, all_layers=list(trainer.bank.layers))
        contract = _contract(self._fleet, base, trainer, run, item, price)
        write_atomic(folder / CONTRACT_NAME, contract.to_json())
        lora = json.loads((folder / CONFIG_NAME).read_bytes())
        write_atomic(folder / CARD_NAME, model_card(contract, lora))
        stored = self._store.publish(run.job.name, folder)
        self._report(
            {
                "event": "published",
                "adapter": stored.id,
                "digest": stored.digest,
                "folder": str(stored.folder),
                "best_step": run.counters.best_step,
                "validation_loss": run.counters.best_loss,
                "cost_usd": contract.training.cost_usd if contract.training else 0.0,
            }
        )
        return stored


def _price(device: torch.device) -> MachinePrice:
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return hourly_price(machine, device=device.type)


def _rows(examples: Sequence[Example]) -> list[Mapping[str, str]]:
    return [example.row for example in examples]


def _fingerprint(fleet: FleetConfig, base: BaseModel, prepared: Sequence[Prepared]) -> str:
    """Everything that decides the bits of a run."""
    parts = [fleet.model_dump_json(), base.digest, str(base.dtype), base.device.type]
    for item in prepared:
        parts += [item.task.model_dump_json(), item.train_digest, item.validation_digest or "", str(item.max_length)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _contract(
    fleet: FleetConfig, base: BaseModel, trainer: Trainer, run: AdapterRun, item: Prepared, price: MachinePrice
) -> AdapterContract:
    task, counters = item.task, run.counters
    # The adapters shared every pass, so each bears the part of the time that its tokens took.
    share = counters.num_tokens / sum(other.counters.num_tokens for other in trainer.runs)
    record = TrainingRecord(
        num_examples=len(item.train.examples),
        num_steps=counters.step,
        num_tokens=counters.num_tokens,
        epochs=counters.step / run.order.steps_per_epoch,
        learning_rate=run.job.learning_rate,
        seed=run.job.trainer.seed,
        train_digest=item.train_digest,
        validation_digest=item.validation_digest,
        validation_loss=counters.best_loss,
        seconds=trainer.seconds * share,
        cost_usd=cost_usd(trainer.seconds * share, price),
        price=f"{price.name}, ${price.usd_per_hour}/h, {price.date}",
        atoll_version=atoll.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return AdapterContract(
        name=run.job.name,
        base=BaseRef(
            name=base.name,
            digest=base.digest,
            quantization_bits=fleet.quantization.bits if fleet.quantization else None,
        ),
        task=task.name,
        description=task.description,
        licence=task.licence,
        prompt=task.prompt,
        chat=item.renderer.uses_chat,
        input_columns=task.input_columns,
        target_column=task.target_column,
        labels=task.labels,
        max_length=item.max_length,
        generation=task.generation,
        metrics=task.metrics,
        training=record,
    )
