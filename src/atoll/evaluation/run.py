"""Answers of all contenders to the same prompts, generated in one mixed run of the engine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

import atoll
from atoll.adapters.contract import AdapterContract
from atoll.adapters.store import StoredAdapter
from atoll.config.fleet import QuantizationConfig
from atoll.config.prices import cost_usd, hourly_price
from atoll.config.task import GenerationConfig, TaskConfig
from atoll.engine import Completion, Engine, Request, SamplingParams
from atoll.errors import AtollError, DataError, RequestInvalid
from atoll.evaluation.outputs import (
    ADAPTER,
    BASE,
    BaseRecord,
    MemberRecord,
    Output,
    RunRecord,
    write_outputs,
    write_run,
)
from atoll.model.cache import OnProgress
from atoll.tasks.dataset import Example, Split, data_digest, load_split
from atoll.text.prompt import PromptRenderer, RenderedPrompt

NUM_EXAMPLES = 1_000
SPLIT: Split = "test"
_VERSIONS_OF = ("torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Member:
    """An adapter to evaluate, with its contract and the task that it is evaluated on."""

    adapter: StoredAdapter
    contract: AdapterContract
    task: TaskConfig
    notes: tuple[str, ...] = ()

    @property
    def contenders(self) -> dict[str, StoredAdapter | None]:
        """Who answers, by name: the bare base model is None."""
        return {BASE: None, ADAPTER: self.adapter}


@dataclass(frozen=True)
class _Asked:
    """One example as every contender gets it; `error` where no prompt could be made of it."""

    example_id: str
    reference: str
    columns: Mapping[str, str]
    prompt: RenderedPrompt | None
    sampling: SamplingParams | None
    error: str | None = None


@dataclass(frozen=True)
class _Prepared:
    member: Member
    data_digest: str
    asked: list[_Asked]


@dataclass(frozen=True)
class _Slip:
    """Which answer a request is for."""

    member: str
    contender: str
    index: int


def run_evaluation(
    engine: Engine,
    members: Sequence[Member],
    folder: Path,
    *,
    fleet: str,
    data_root: Path | None = None,
    limit: int | None = NUM_EXAMPLES,
    seed: int = 0,
    quantization: QuantizationConfig | None = None,
    on_progress: OnProgress = lambda what, fraction: None,
) -> RunRecord:
    """Let all contenders of all members answer `limit` test examples, and write the answers and the run to `folder`.

    A request that fails, or an example that makes no prompt, is an answer with an `error`. Raises DataError for data
    that cannot be read.
    """
    prepared = [_prepare(engine, member, data_root, limit, seed, on_progress) for member in members]
    slips, requests = _requests(prepared, engine.stats().num_slots)
    on_progress(f"{len(requests)} answers", 0.0)
    started_at_s, num_steps = time.perf_counter(), engine.stats().num_steps
    completions = engine.generate(requests, lambda done, total: on_progress(f"{total} answers", done / total))
    seconds = time.perf_counter() - started_at_s
    answers = dict(zip(slips, completions, strict=True))
    digests = {item.member.adapter.name: write_outputs(folder, *_outputs(item, answers)) for item in prepared}
    run = _run_record(
        engine,
        members=tuple(_member_record(item, digests[item.member.adapter.name]) for item in prepared),
        completions=completions,
        seconds=seconds,
        num_steps=engine.stats().num_steps - num_steps,
        fleet=fleet,
        limit=limit,
        seed=seed,
        quantization=quantization,
    )
    write_run(folder, run)
    return run


def _prepare(
    engine: Engine, member: Member, data_root: Path | None, limit: int | None, seed: int, on_progress: OnProgress
) -> _Prepared:
    on_progress(f"reading {member.task.name}", None)
    examples = load_split(member.task, SPLIT, data_root=data_root, limit=limit, seed=seed, for_scoring=True)
    renderer = member.contract.renderer(engine.base.tokenizer)
    asked = [_ask(example, member, renderer, engine.max_length) for example in examples]
    return _Prepared(member, data_digest(examples), asked)


def _ask(example: Example, member: Member, renderer: PromptRenderer, max_length: int) -> _Asked:
    reference = example.row[member.task.target_column]
    try:
        prompt = renderer.prompt(example.row)
        sampling = _sampling(member.task.generation, room=max_length - len(prompt.ids))
    except (DataError, RequestInvalid) as error:
        return _Asked(example.example_id, reference, example.columns, None, None, error.what)
    return _Asked(example.example_id, reference, example.columns, prompt, sampling)


def _sampling(generation: GenerationConfig, room: int) -> SamplingParams:
    """Greedy; a long prompt leaves fewer tokens for the answer, as when it is served."""
    if room < 1:
        raise RequestInvalid("the prompt is longer than the base model's positions")
    return SamplingParams(max_new_tokens=min(generation.max_new_tokens, room), stop=generation.stop)


def _requests(prepared: Sequence[_Prepared], num_slots: int) -> tuple[list[_Slip], list[Request]]:
    """All requests, in an order that mixes as many members as the engine has slots for."""
    slips, requests = [], []
    for start in range(0, len(prepared), num_slots):
        for slip, asked, adapter in _mixed(prepared[start : start + num_slots]):
            if asked.prompt is not None and asked.sampling is not None:
                slips.append(slip)
                ids = tuple(asked.prompt.ids)
                requests.append(Request(prompt_ids=ids, sampling=asked.sampling, adapter=adapter))
    return slips, requests


def _mixed(prepared: Sequence[_Prepared]) -> Iterator[tuple[_Slip, _Asked, StoredAdapter | None]]:
    """Every member's first example for every contender, then every member's second one, and so on."""
    for index, row in enumerate(itertools.zip_longest(*(item.asked for item in prepared))):
        for item, asked in zip(prepared, row, strict=True):
            if asked is not None:
                for contender, adapter in item.member.contenders.items():
                    yield _Slip(item.member.adapter.name, contender, index), asked, adapter


def _outputs(item: _Prepared, answers: Mapping[_Slip, Completion]) -> tuple[str, dict[str, list[Output]]]:
    name = item.member.adapter.name
    return name, {
        contender: [
            _output(asked, answers.get(_Slip(name, contender, index))) for index, asked in enumerate(item.asked)
        ]
        for contender in item.member.contenders
    }


def _output(asked: _Asked, completion: Completion | None) -> Output:
    finish = completion.finish if completion else None
    return Output(
        example_id=asked.example_id,
        prompt_digest=_prompt_digest(asked.prompt.ids) if asked.prompt else "",
        prediction=completion.text if completion else "",
        reference=asked.reference,
        columns=dict(asked.columns),
        finish_reason=finish.finish_reason if finish else None,
        num_prompt_tokens=len(asked.prompt.ids) if asked.prompt else 0,
        num_cut_tokens=asked.prompt.num_cut_tokens if asked.prompt else 0,
        num_new_tokens=len(completion.token_ids) if completion else 0,
        error=_error(asked, completion),
    )


def _error(asked: _Asked, completion: Completion | None) -> str | None:
    if completion is None:
        return asked.error
    if completion.error is not None:
        return _one_line(completion.error)
    if completion.finish is not None and completion.finish.finish_reason == "abort":
        return "the request was aborted"
    return None


def _one_line(error: AtollError) -> str:
    return f"{error.what} ({error.why})" if error.why else error.what


def _prompt_digest(ids: Sequence[int]) -> str:
    return "sha256:" + hashlib.sha256(np.asarray(ids, dtype="<i8").tobytes()).hexdigest()


def _member_record(item: _Prepared, output_digests: dict[str, str]) -> MemberRecord:
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
        data_digest=item.data_digest,
        num_examples=len(item.asked),
        max_length=member.contract.max_length,
        max_new_tokens=task.generation.max_new_tokens,
        stop=task.generation.stop,
        training=member.contract.training,
        notes=member.notes,
        output_digests=output_digests,
    )


def _run_record(
    engine: Engine,
    *,
    members: tuple[MemberRecord, ...],
    completions: Sequence[Completion],
    seconds: float,
    num_steps: int,
    fleet: str,
    limit: int | None,
    seed: int,
    quantization: QuantizationConfig | None,
) -> RunRecord:
    base = engine.base
    machine = torch.cuda.get_device_name(base.device) if base.device.type == "cuda" else None
    price = hourly_price(machine, device=base.device.type)
    versions = {name: importlib.metadata.version(name) for name in _VERSIONS_OF}
    return RunRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        fleet=fleet,
        base=BaseRecord(
            name=base.name,
            digest=base.digest,
            num_params=base.num_params,
            dtype=str(base.dtype).removeprefix("torch."),
            device=machine or base.device.type,
            quantization_bits=quantization.bits if quantization else None,
        ),
        limit=limit,
        seed=seed,
        members=members,
        seconds=round(seconds, 3),
        num_prompt_tokens=sum(done.finish.num_prompt_tokens for done in completions if done.finish),
        num_new_tokens=sum(len(done.token_ids) for done in completions),
        num_steps=num_steps,
        cost_usd=cost_usd(seconds, price),
        price=f"{price.name}, ${price.usd_per_hour}/h, {price.date}",
        max_batch_tokens=engine.config.max_batch_tokens,
        max_num_requests=engine.config.max_num_requests,
        versions={"atoll": atoll.__version__, "python": platform.python_version()} | versions,
    )
