"""The trainer: several adapters over one frozen base, each with its own loss, steps, schedule and early stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atoll.adapters.bank import AdapterBank
from atoll.config.fleet import LoraConfig, TrainerConfig
from atoll.errors import AtollError
from atoll.kernels.lora import Dropout, LoraWeights
from atoll.model.fuse_training import fuse_for_training
from atoll.model.load import BaseModel
from atoll.training.checkpoint import save_checkpoint
from atoll.training.data import ExampleOrder, PassMixer, TokenizedSplit
from atoll.training.loss import pack, train_pass, validation_pass
from atoll.training.optim import AdapterOptimizer


class TrainingDiverged(AtollError):
    """An adapter's gradient is not a number any more."""


@dataclass(frozen=True)
class TrainingJob:
    """One adapter to train, all inputs ready."""

    name: str
    adapter: LoraConfig
    trainer: TrainerConfig
    learning_rate: float
    train: TokenizedSplit
    validation: TokenizedSplit | None


@dataclass(frozen=True)
class Progress:
    """What a trainer tells after each pass. step_loss: mean token loss of the last whole step, in nats.

    num_tokens: of this adapter so far. seconds: of the whole run so far.
    """

    name: str
    step: int
    total_steps: int
    step_loss: float | None
    validation_loss: float | None
    learning_rate: float
    grad_norm: float
    num_tokens: int
    seconds: float
    finished: bool


@dataclass(frozen=True)
class PassTime:
    """What one pass took: its tokens of all adapters, and what the validation rounds within it took beside that."""

    num_tokens: int
    seconds: float
    num_validation_tokens: int = 0
    validation_seconds: float = 0.0


@dataclass
class _Counters:
    """The part of an adapter's state that is plain numbers; saved in state.json."""

    step: int = 0
    num_taken: int = 0  # examples of the current step that have been passed
    loss_sum: float = 0.0  # token losses of the current step so far
    num_tokens: int = 0
    step_loss: float | None = None
    grad_norm: float = 0.0
    learning_rate: float = 0.0
    validation_loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    bad_rounds: int = 0
    finished: bool = False


@dataclass
class AdapterRun:
    """One adapter in training: its slot, parameters, optimiser and counters."""

    job: TrainingJob
    slot: int
    weights: dict[str, LoraWeights]
    counters: _Counters = field(default_factory=_Counters)
    best: list[Tensor] | None = None

    def __post_init__(self) -> None:
        config = self.job.trainer
        self.order = ExampleOrder(len(self.job.train.examples), config.effective_batch_size, config.seed)
        steps = config.epochs * self.order.steps_per_epoch
        self.total_steps = steps if config.max_steps is None else min(config.max_steps, steps)
        self.evaluate_every = config.evaluate_every(self.order.steps_per_epoch)
        self.optimizer = AdapterOptimizer(
            self.weights,
            config,
            peak=self.job.learning_rate,
            total_steps=self.total_steps,
            steps_per_cycle=self.evaluate_every,
        )

    @property
    def planned_tokens(self) -> float:
        """Tokens that the whole schedule passes."""
        return self.job.train.num_tokens * self.total_steps / self.order.steps_per_epoch

    @property
    def planned_work(self) -> float:
        """The same without what examples share, which a pass computes once."""
        split = self.job.train
        return sum(split.lengths(range(len(split.examples)))) * self.total_steps / self.order.steps_per_epoch

    @property
    def planned_validation_tokens(self) -> int:
        """Tokens of all validation rounds of the whole schedule."""
        split = self.job.validation
        return 0 if split is None else split.num_tokens * math.ceil(self.total_steps / self.evaluate_every)

    @property
    def pending(self) -> list[int]:
        """Indices of the current step's examples that have not been passed yet."""
        return self.order.step_indices(self.counters.step)[self.counters.num_taken :]

    @property
    def step_targets(self) -> int:
        """Trained tokens of the whole current step."""
        return sum(self.job.train.examples[i].num_targets for i in self.order.step_indices(self.counters.step))

    def keep_best(self) -> None:
        """Remember the weights as they are now, in host memory."""
        self.best = [parameter.detach().to("cpu", copy=True) for parameter in self.optimizer.parameters]

    def progress(self, seconds: float) -> Progress:
        c = self.counters
        return Progress(
            self.job.name, c.step, self.total_steps, c.step_loss, c.validation_loss, c.learning_rate, c.grad_norm,
            c.num_tokens, round(seconds, 3), c.finished,
        )  # fmt: skip


class Trainer:
    """Runs passes until every adapter has finished; a pass mixes adapters, a step belongs to one.

    Everything that a later pass depends on is in `state()` and `tensors()`, so that a run that is killed and resumed
    ends in the same bits as one that is not.
    """

    def __init__(
        self,
        base: BaseModel,
        jobs: Sequence[TrainingJob],
        config: TrainerConfig,
        *,
        run_folder: Path | None = None,
        on_progress: Callable[[Progress], None] = lambda _: None,
        on_pass: Callable[[PassTime], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base = base
        self.config = config
        self._run_folder = run_folder
        self._on_progress = on_progress
        self._on_pass = on_pass
        self._clock = clock
        self._validated = (0, 0.0)
        max_rank = max(job.adapter.r for job in jobs)
        self.bank = AdapterBank(base.model, num_slots=len(jobs), max_rank=max_rank, dtype=torch.float32)
        fuse_for_training(base.model)
        self.runs = [
            AdapterRun(job, slot, self.bank.create(slot, job.adapter, seed=job.trainer.seed))
            for slot, job in enumerate(jobs)
        ]
        self._mixer = PassMixer({run.job.name: run.planned_work for run in self.runs}, config.token_budget)
        self.num_passes = 0
        self.seconds = 0.0
        self._stop_requested = False
        if config.gradient_checkpointing:
            base.model.gradient_checkpointing_enable({"use_reentrant": False})
            base.model.train()

    def request_stop(self) -> None:
        """Ask for a checkpoint and an early return after the pass that is running; safe in a signal handler."""
        self._stop_requested = True

    def train(self) -> bool:
        """Train to the end. Returns False if it was asked to stop before; a checkpoint then tells where."""
        started, before = self._clock(), self.seconds
        steps_at_checkpoint = self._num_steps()
        while active := [run for run in self.runs if not run.counters.finished]:
            if self._stop_requested:
                self._checkpoint()
                return False
            began = self._clock()
            num_tokens, passed = self._pass(active)
            self.num_passes += 1
            now = self._clock()
            self.seconds = before + now - started
            num_validated, validation_s = self._validated
            self._on_pass(PassTime(num_tokens, now - began - validation_s, num_validated, validation_s))
            for run in passed:
                self._on_progress(run.progress(self.seconds))
            if self._num_steps() - steps_at_checkpoint >= self.config.checkpoint_every_steps:
                self._checkpoint()
                steps_at_checkpoint = self._num_steps()
        self._checkpoint()
        return True

    @torch.no_grad()
    def finish(self) -> None:
        """Put each adapter's best weights back into its slot: those with the lowest validation loss."""
        for run in self.runs:
            if run.best is not None:
                for parameter, best in zip(run.optimizer.parameters, run.best, strict=True):
                    parameter.copy_(best)

    def state(self) -> dict[str, Any]:
        """JSON values; `restore` takes them back."""
        return {
            "num_passes": self.num_passes,
            "seconds": self.seconds,
            "credits": self._mixer.credits,
            "adapters": {run.job.name: vars(run.counters) for run in self.runs},
        }

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Adapter name -> all tensors of its state."""
        groups = {}
        for run in self.runs:
            groups[run.job.name] = run.optimizer.state()
            for index, tensor in enumerate(run.best or []):
                groups[run.job.name][f"best.{index}"] = tensor
        return groups

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from a checkpoint of the same jobs."""
        self.num_passes = state["num_passes"]
        self.seconds = state["seconds"]
        self._mixer.credits = dict(state["credits"])
        for run in self.runs:
            group = tensors[run.job.name]
            run.counters = _Counters(**state["adapters"][run.job.name])
            run.optimizer.restore(group)
            if "best.0" in group:
                run.best = [group[f"best.{index}"] for index in range(len(run.optimizer.parameters))]

    def _num_steps(self) -> int:
        return sum(run.counters.step for run in self.runs)

    def _checkpoint(self) -> None:
        if self._run_folder is not None:
            save_checkpoint(self._run_folder, self.num_passes, self.state(), self.tensors())

    def _pass(self, active: list[AdapterRun]) -> tuple[int, list[AdapterRun]]:
        """Returns the tokens of the examples that were passed and their adapters."""
        self._validated = (0, 0.0)
        queues = {run.job.name: run.job.train.lengths(run.pending) for run in active}
        taken = self._mixer.take(queues)
        chosen = [run for run in active if run.job.name in taken]
        groups = {run.slot: [run.job.train.examples[i] for i in run.pending[: taken[run.job.name]]] for run in chosen}
        packed = pack(groups, self._base.device)
        denominators, total = {run.slot: run.step_targets for run in chosen}, 0
        sums = train_pass(self._base.model, self.bank, packed, denominators, self._dropouts(chosen))
        for run in chosen:
            counters = run.counters
            counters.num_taken += len(groups[run.slot])
            counters.loss_sum += sums[run.slot]
            num_tokens = sum(len(example.ids) for example in groups[run.slot])
            counters.num_tokens += num_tokens
            total += num_tokens
            if not run.pending:
                self._step(run)
        return total, chosen

    def _dropouts(self, runs: list[AdapterRun]) -> dict[int, Dropout]:
        """A seed for each adapter and pass that depends on its own progress only."""
        return {
            run.slot: Dropout(
                run.job.adapter.dropout,
                (run.job.trainer.seed * 1_000_003 + run.counters.step) * 1_000_003 + run.counters.num_taken,
            )
            for run in runs
            if run.job.adapter.dropout
        }

    def _step(self, run: AdapterRun) -> None:
        counters = run.counters
        counters.step_loss = counters.loss_sum / run.step_targets
        counters.grad_norm, counters.learning_rate = run.optimizer.step(counters.step)
        if not math.isfinite(counters.grad_norm):
            raise TrainingDiverged(
                f"the gradient of {run.job.name!r} is not finite at step {counters.step}",
                why=f"the loss was {counters.step_loss:.3g}",
                mend=f"lower its learning_rate (now {run.job.learning_rate:.2g}) or max_grad_norm",
            )
        counters.step += 1
        counters.num_taken, counters.loss_sum = 0, 0.0
        counters.finished = counters.step >= run.total_steps
        if run.job.validation is not None and (counters.step % run.evaluate_every == 0 or counters.finished):
            self._validate(run, run.job.validation)

    def _validate(self, run: AdapterRun, split: TokenizedSplit) -> None:
        counters, began = run.counters, self._clock()
        counters.validation_loss = self._mean_loss(run.slot, split)
        num_tokens, seconds = self._validated
        self._validated = (num_tokens + split.num_tokens, seconds + self._clock() - began)
        if counters.best_loss is None or counters.validation_loss < counters.best_loss:
            counters.best_loss, counters.best_step, counters.bad_rounds = counters.validation_loss, counters.step, 0
            run.keep_best()
            return
        counters.bad_rounds += 1
        patience = run.job.trainer.early_stop
        counters.finished = counters.finished or (patience is not None and counters.bad_rounds >= patience)

    def _mean_loss(self, slot: int, split: TokenizedSplit) -> float:
        """Mean token loss of a split, in passes under the token budget."""
        mixer = PassMixer({"": 1.0}, self.config.token_budget)
        start, total = 0, 0.0
        while start < len(split.examples):
            count = mixer.take({"": split.lengths(range(start, len(split.examples)))})[""]
            packed = pack({slot: split.examples[start : start + count]}, self._base.device)
            total += validation_pass(self._base.model, self.bank, packed)[slot]
            start += count
        return total / sum(example.num_targets for example in split.examples)
