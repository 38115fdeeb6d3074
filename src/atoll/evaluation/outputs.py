"""What an evaluation leaves on disk before anything is scored: the record of the run and every answer.

    <folder>/raw/run.json                     RunRecord; written last, it names the digest of every other file
    <folder>/raw/<member>/<contender>.jsonl   one Output a line, in the order of the examples

Scores and reports are made from these files alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atoll.adapters.contract import TrainingRecord
from atoll.config.task import PublishedScores
from atoll.errors import DataError, NotFound
from atoll.files import write_atomic

BASE = "base"
ADAPTER = "adapter"
_MEND = "run `atoll eval` again"

ContenderKind = Literal["base", "adapter", "few_shot", "majority", "nearest", "remote"]

_Model = TypeVar("_Model", bound=BaseModel)


class Part(BaseModel):
    """A part of a file that Atoll writes and reads back: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Output(Part):
    """One contender's answer to one example; `error` says why there is none.

    prompt_digest: sha256 over the prompt's token ids, "" where no prompt could be made. columns: what metrics read of
    the example beside the reference.
    """

    example_id: str
    prompt_digest: str
    prediction: str
    reference: str
    finish_reason: str | None
    num_prompt_tokens: int
    num_cut_tokens: int
    num_new_tokens: int
    error: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)

    @property
    def has_failed(self) -> bool:
        return self.error is not None


class Inputs(Part):
    """What an example asks: its input columns."""

    example_id: str
    columns: dict[str, str]


class BaseRecord(Part):
    """The base model as it was loaded."""

    name: str
    digest: str
    num_params: int
    dtype: str
    device: str
    quantization_bits: Literal[4, 8] | None = None


class ContenderRecord(Part):
    """One who answered the examples of a member, and what that took.

    detail: what the name does not say: the model and where it is served, how many examples were shown. cost_usd: the
    share of the engine's time by tokens, or the provider's tokens at its price; None where no price is known. seconds:
    that share of time, or the sum over a provider's requests, which run beside each other. Answers that an earlier
    evaluation left are counted with what they took then.
    """

    name: str
    kind: ContenderKind
    detail: str = ""
    cost_usd: float | None = 0.0
    seconds: float = 0.0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0


class MemberRecord(Part):
    """One adapter with the task it was evaluated on, and the digests of its files of answers by contender.

    labels: the closed set of answers, where the task has one; an answer outside of it is no failure, and scores 0.
    num_rows: rows of the split, of which num_duplicates with the inputs of an earlier row and num_leaked with the
    inputs of a row of train were left out before num_examples were drawn. hub_dataset: `owner/name` or
    `owner/name@revision`, where the split came from a data set on the hub.
    """

    name: str
    adapter_id: str
    adapter_digest: str
    task: str
    category: str
    metrics: tuple[str, ...]
    published: PublishedScores | None
    split: str
    data_digest: str
    num_examples: int
    max_length: int
    max_new_tokens: int
    stop: tuple[str, ...]
    training: TrainingRecord | None
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    num_rows: int = 0
    num_duplicates: int = 0
    num_leaked: int = 0
    contenders: tuple[ContenderRecord, ...] = ()
    output_digests: dict[str, str]
    inputs_digest: str = ""
    hub_dataset: str = ""


class RunRecord(Part):
    """Everything about a run that its answers do not say. Decoding is greedy."""

    format_version: Literal[1] = 1
    created: str
    fleet: str
    base: BaseRecord
    limit: int | None
    seed: int
    members: tuple[MemberRecord, ...]
    seconds: float
    num_prompt_tokens: int
    num_new_tokens: int
    num_steps: int
    cost_usd: float
    price: str
    max_batch_tokens: int
    max_num_requests: int
    versions: dict[str, str]


def write_outputs(folder: Path, member: str, outputs: Mapping[str, Sequence[Output]]) -> dict[str, str]:
    """Write one member's answers, by contender, and return the digests of the files."""
    return {
        contender: write_lines(_output_path(folder, member, contender), answers)
        for contender, answers in outputs.items()
    }


def write_inputs(folder: Path, member: str, inputs: Sequence[Inputs]) -> str:
    """Write what a member's examples ask, for readers of the report, and return the digest of the file."""
    return write_lines(_inputs_path(folder, member), inputs)


def write_lines(path: Path, parts: Sequence[Part]) -> str:
    """Write parts as JSON, one a line, and return the digest of the file."""
    content = "".join(part.model_dump_json() + "\n" for part in parts).encode()
    write_atomic(path, content)
    return _digest(content)


def write_run(folder: Path, run: RunRecord) -> None:
    """Write the record of a run whose answers are all on disk."""
    write_atomic(_run_path(folder), run.model_dump_json(indent=2) + "\n")


def read_run(folder: Path) -> RunRecord:
    """The record of a run. Raises NotFound, or DataError for a file that is damaged."""
    return read_part(RunRecord, _run_path(folder))


def read_outputs(folder: Path, member: MemberRecord) -> dict[str, list[Output]]:
    """A member's answers by contender. Raises NotFound, or DataError for files that are not those of the run."""
    return {
        contender: read_lines(Output, _output_path(folder, member.name, contender), digest)
        for contender, digest in member.output_digests.items()
    }


def read_inputs(folder: Path, member: MemberRecord) -> dict[str, dict[str, str]]:
    """The input columns of a member's examples by the examples' ids; raises as `read_outputs` does."""
    if not member.inputs_digest:
        return {}
    found = read_lines(Inputs, _inputs_path(folder, member.name), member.inputs_digest)
    return {inputs.example_id: inputs.columns for inputs in found}


def read_lines(model: type[_Model], path: Path, digest: str) -> list[_Model]:
    """The parts in a file of that digest. Raises NotFound, or DataError for another or a damaged file."""
    content = _read(path)
    if _digest(content) != digest:
        why = "their digest is not the recorded one: the file was changed, or a later run was interrupted"
        raise DataError("these answers do not belong to the run", where=str(path), why=why, mend=_MEND)
    return [_parse(model, line, f"{path}:{number}") for number, line in enumerate(content.splitlines(), start=1)]


def read_part(model: type[_Model], path: Path) -> _Model:
    """The one part that a file holds. Raises NotFound, or DataError for a damaged file."""
    return _parse(model, _read(path), str(path))


def _run_path(folder: Path) -> Path:
    return folder / "raw" / "run.json"


def _output_path(folder: Path, member: str, contender: str) -> Path:
    return folder / "raw" / member / f"{contender}.jsonl"


def _inputs_path(folder: Path, member: str) -> Path:
    # No contender's name begins with a mark.
    return folder / "raw" / member / "_inputs.jsonl"


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFound("there are no results of an evaluation here", where=str(path), mend=_MEND) from None


def _parse(model: type[_Model], content: bytes, where: str) -> _Model:
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        why = f"{place}: {first['msg']}" if place else first["msg"]
        raise DataError("the file is damaged", where=where, why=why, mend=_MEND) from None
