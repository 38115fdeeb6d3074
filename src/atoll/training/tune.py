"""From a fleet file to adapters in the store: read, tokenise, train together, publish."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import atoll
from atoll.adapters.contract import CONTRACT_NAME, AdapterContract, BaseRef, TrainingRecord
from atoll.adapters.peft_files import CONFIG_NAME
from atoll.adapters.peft_io import write_adapter
from atoll.adapters.store import CARD_NAME, AdapterStore, StoredAdapter
from atoll.config.fleet import FleetConfig
from atoll.config.prices import MachinePrice, cost_usd
from atoll.errors import AtollError, ConfigError
from atoll.files import write_atomic
from atoll.model.load import BaseModel, load_base
from atoll.tasks.task import find_task
from atoll.training.card import model_card
from atoll.training.checkpoint import latest_checkpoint, load_checkpoint, remove_checkpoints
from atoll.training.events import EventLog
from atoll.training.prepare import Prepared, fingerprint_of, job_of, prepare, price_of
from atoll.training.quote import Bill, Measured, Quote, keep_quote, kept_quote, make_bill, make_quote, peak_memory_bytes
from atoll.training.run_lock import run_lock
from atoll.training.trainer import AdapterRun, PassTime, Progress, Trainer

Report = Callable[[dict[str, Any]], None]
# A run without a quote makes one from its first passes: from this many seconds, or this share of its tokens, if sooner.
_QUOTE_S = 20.0
_QUOTE_SHARE = 0.1


@dataclass(frozen=True)
class TuneResult:
    """finished is False when the run was asked to stop; it then has a checkpoint and no adapters.

    quote: what was expected before, or after the first passes; None where the run was stopped before either.
    """

    finished: bool
    adapters: tuple[StoredAdapter, ...]
    run_folder: Path
    bill: Bill
    quote: Quote | None

    @property
    def seconds(self) -> float:
        return self.bill.seconds

    @property
    def cost_usd(self) -> float:
        return self.bill.cost_usd


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
        self._log: EventLog | None = None
        self._trainer: Trainer | None = None
        self._quote: Quote | None = None
        self._stop_requested = False

    @property
    def is_training(self) -> bool:
        """Whether there is anything yet that a stop would have to keep."""
        return self._trainer is not None

    def request_stop(self) -> None:
        """Stop after the pass that is running, with a checkpoint."""
        self._stop_requested = True
        if self._trainer is not None:
            self._trainer.request_stop()

    def run(self, *, resume: bool = False) -> TuneResult:
        """Train all members together and publish them. Raises AtollError with nothing half-written."""
        with run_lock(self._run_folder):
            checkpoint = self._find_checkpoint(resume)
            with EventLog(self._run_folder, resume=checkpoint is not None) as log:
                self._log = log
                try:
                    result = self._run(checkpoint)
                except AtollError as error:
                    self._tell({"event": "failed", "error": str(error)})
                    raise
                except KeyboardInterrupt:
                    self._tell({"event": "failed", "error": "interrupted"})
                    raise
                self._tell(
                    {
                        "event": "end",
                        "finished": result.finished,
                        "adapters": [adapter.id for adapter in result.adapters],
                        "seconds": round(result.bill.seconds, 3),
                        "cost_usd": result.bill.cost_usd,
                        "bill": result.bill.model_dump(mode="json"),
                    }
                )
                return result

    def _run(self, checkpoint: Path | None) -> TuneResult:
        members = self._fleet.members()
        self._tell({"event": "start", "adapters": [member.name for member in members], "resumed": bool(checkpoint)})
        tasks = [find_task(member.task_ref) for member in members]
        base = load_base(self._fleet.base_model, dtype=self._fleet.dtype, quantization=self._fleet.quantization)
        self._tell({"event": "base", "name": base.name, "digest": base.digest, "num_params": base.num_params})
        prepared = []
        for member, task in zip(members, tasks, strict=True):
            prepared.append(prepare(member, task, base, self._data_root))
            self._tell_data(prepared[-1])
        price = price_of(base.device)
        fingerprint = fingerprint_of(self._fleet, base, prepared)
        trainer = self._make_trainer(base, prepared, price, fingerprint)
        if checkpoint is not None:
            self._resume(trainer, checkpoint, fingerprint)
        write_atomic(self._run_folder / "run.json", json.dumps({"fingerprint": fingerprint}) + "\n")
        self._take_quote(kept_quote(self._run_folder, fingerprint))
        if self._stop_requested:
            trainer.request_stop()
        finished = trainer.train()
        adapters: tuple[StoredAdapter, ...] = ()
        if finished:
            trainer.finish()
            pairs = zip(trainer.runs, prepared, strict=True)
            adapters = tuple(self._publish(base, trainer, run, item, price) for run, item in pairs)
            remove_checkpoints(self._run_folder)
        bill = make_bill(trainer, price, base.device)
        return TuneResult(finished, adapters, self._run_folder, bill, self._quote)

    def _find_checkpoint(self, resume: bool) -> Path | None:
        checkpoint = latest_checkpoint(self._run_folder)
        if checkpoint is not None and not resume:
            raise ConfigError(
                "the run folder holds the checkpoint of an unfinished run",
                where=str(self._run_folder),
                mend="add --resume to go on from it, or remove the folder to start again",
            )
        return checkpoint

    def _tell_data(self, item: Prepared) -> None:
        self._tell(
            {
                "event": "data",
                "adapter": item.member.name,
                "task": item.task.name,
                "num_examples": len(item.train.examples),
                "num_validation": len(item.validation.examples) if item.validation else 0,
                "num_tokens": item.train.num_tokens,
                "max_length": item.max_length,
                "num_cut": item.train.num_cut,
            }
        )

    def _make_trainer(
        self, base: BaseModel, prepared: Sequence[Prepared], price: MachinePrice, fingerprint: str
    ) -> Trainer:
        passes: list[PassTime] = []
        loaded_bytes = peak_memory_bytes(base.device)

        def note(one: PassTime) -> None:
            passes.append(one)
            # What was measured before a resumption is lost, and with it the first passes.
            if self._quote is None and trainer.num_passes == len(passes) and _are_enough(passes, trainer):
                measured = Measured(tuple(passes), loaded_bytes, base.device)
                quote = make_quote(trainer, measured, fingerprint=fingerprint, made_from="first passes", price=price)
                keep_quote(self._run_folder, quote)
                self._take_quote(quote)

        trainer = Trainer(
            base,
            [job_of(item, base) for item in prepared],
            self._fleet.trainer,
            run_folder=self._run_folder,
            on_progress=lambda progress: self._tell_progress(progress, price),
            on_pass=note,
        )
        for run in trainer.runs:
            self._tell({"event": "plan", "adapter": run.job.name, "total_steps": run.total_steps,
                        "planned_tokens": run.planned_tokens, "learning_rate": run.job.learning_rate})  # fmt: skip
        self._trainer = trainer
        return trainer

    def _take_quote(self, quote: Quote | None) -> None:
        self._quote = quote
        if quote is not None:
            self._tell({"event": "quote", "quote": quote.model_dump(mode="json")})

    def _resume(self, trainer: Trainer, checkpoint: Path, fingerprint: str) -> None:
        path = self._run_folder / "run.json"
        saved = json.loads(path.read_bytes())["fingerprint"] if path.is_file() else None
        if saved != fingerprint:
            raise self._foreign(checkpoint, trainer)
        trainer.restore(*load_checkpoint(checkpoint))
        self._tell({"event": "resumed", "checkpoint": str(checkpoint), "num_passes": trainer.num_passes})

    def _foreign(self, checkpoint: Path, trainer: Trainer) -> ConfigError:
        there = list(load_checkpoint(checkpoint)[0]["adapters"])
        here = [run.job.name for run in trainer.runs]
        why = "an exact resume needs the same inputs"
        if there != here:
            why += f"; the checkpoint is of {', '.join(there)}, this run of {', '.join(here)}"
        return ConfigError(
            "the checkpoint belongs to a run with other settings, data or base model",
            where=str(checkpoint),
            why=why,
            mend="to go on with that run, restore its fleet file, its data and its --adapter options; to run this one "
            f"beside it, set another `output` in the fleet file; to give it up, remove {checkpoint}",
        )

    def _tell(self, event: dict[str, Any]) -> None:
        self._report(self._log.write(event) if self._log else event)

    def _tell_progress(self, progress: Progress, price: MachinePrice) -> None:
        self._tell({"event": "progress"} | asdict(progress) | {"cost_usd": cost_usd(progress.seconds, price)})

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
        self._tell(
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


def _are_enough(passes: Sequence[PassTime], trainer: Trainer) -> bool:
    """Whether a quote can be made of these first passes of a run."""
    planned = sum(run.planned_tokens for run in trainer.runs)
    share = sum(one.num_tokens for one in passes) / planned
    return len(passes) > 1 and (trainer.seconds >= _QUOTE_S or share >= _QUOTE_SHARE)


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
