"""Asking what `transfer.py` scores: every adapter, and the bare base, on examples of every task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.adapters.store import StoredAdapter
from atoll.engine import Completion, Engine, Request, SamplingParams
from atoll.errors import DataError, RequestInvalid
from atoll.evaluation.outputs import Output, write_lines
from atoll.evaluation.transfer import TransferAnswers, TransferRecord, TransferTask, answers_path, transfer_path
from atoll.files import write_atomic
from atoll.model.cache import OnProgress
from atoll.tasks.dataset import Example

if TYPE_CHECKING:
    from atoll.evaluation.asking import Member


def run_transfer(
    engine: Engine,
    members: Sequence[tuple[Member, Sequence[Example]]],
    folder: Path,
    *,
    num_examples: int,
    seed: int = 0,
    on_progress: OnProgress = lambda what, fraction: None,
) -> TransferRecord:
    """Let the base and every member's adapter answer the first `num_examples` of every member's examples.

    A request that fails is an answer with an `error`. Writes the answers and the record to `folder`.
    """
    asked = [_Asked(member, tuple(examples[:num_examples]), engine) for member, examples in members]
    adapters: list[StoredAdapter | None] = [None, *(item.member.adapter for item in asked)]
    # One adapter after the other, so that they change places on the device as seldom as possible.
    cells = [(adapter, item) for adapter in adapters for item in asked]
    requests = [replace(request, adapter=adapter) for adapter, item in cells for request in item.requests.values()]
    done = iter(engine.generate(_renewed(requests), lambda done, total: on_progress("transfer", done / total)))
    answers = []
    for adapter, item in cells:
        completions = {index: next(done) for index in item.requests}
        outputs = [_output(item.member, example, completions.get(i)) for i, example in enumerate(item.examples)]
        name, member = adapter.name if adapter else None, item.member.adapter.name
        digest = write_lines(answers_path(folder, name, member), outputs)
        answers.append(TransferAnswers(adapter=name, member=member, output_digest=digest))
    record = TransferRecord(
        base_digest=engine.base.digest,
        num_examples=num_examples,
        seed=seed,
        adapters={item.member.adapter.name: item.member.adapter.digest for item in asked},
        tasks=tuple(item.task for item in asked),
        answers=tuple(answers),
    )
    write_atomic(transfer_path(folder), record.model_dump_json(indent=2) + "\n")
    return record


class _Asked:
    """One member's examples with a request for each that makes a prompt, as its own adapter gets it."""

    def __init__(self, member: Member, examples: tuple[Example, ...], engine: Engine) -> None:
        self.member = member
        self.examples = examples
        self.requests: dict[int, Request] = {}
        renderer = member.contract.renderer(engine.base.tokenizer)
        generation = member.task.generation
        for index, example in enumerate(examples):
            try:
                ids = tuple(renderer.prompt(example.row).ids)
                num_new = min(generation.max_new_tokens, engine.max_length - len(ids))
                sampling = SamplingParams(max_new_tokens=num_new, stop=generation.stop)
            except (DataError, RequestInvalid):
                continue
            self.requests[index] = Request(prompt_ids=ids, sampling=sampling)

    @property
    def task(self) -> TransferTask:
        return TransferTask(
            member=self.member.adapter.name, metric=self.member.task.metrics[0], num_examples=len(self.examples)
        )


def _renewed(requests: Sequence[Request]) -> list[Request]:
    """The same requests under ids of their own."""
    return [replace(request, request_id=str(number)) for number, request in enumerate(requests)]


def _output(member: Member, example: Example, completion: Completion | None) -> Output:
    error = None
    if completion is None:
        error = "the prompt does not fit"
    elif completion.error is not None:
        error = completion.error.what
    elif completion.finish is None or completion.finish.finish_reason == "abort":
        error = "the request was aborted"
    finish = completion.finish if completion else None
    return Output(
        example_id=example.example_id,
        prompt_digest="",
        prediction=completion.text if completion else "",
        reference=example.row[member.task.target_column],
        columns=dict(example.columns),
        finish_reason=finish.finish_reason if finish else None,
        num_prompt_tokens=finish.num_prompt_tokens if finish else 0,
        num_cut_tokens=0,
        num_new_tokens=len(completion.token_ids) if completion else 0,
        error=error,
    )
