"""Forgetting: what tuning cost in generality.

The bare base answers a fixed list of general prompts greedily. An adapter that has forgotten nothing finds these
answers as probable as the base does; the measure is the change in bits per token, whose power of two is the factor by
which perplexity grew.

    <folder>/raw/_generality.json   GeneralityRecord, which `generality.py` writes
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from atoll.evaluation.outputs import BaseRecord, Part, RunRecord, read_part
from atoll.evaluation.scores import Score, score_of
from atoll.evaluation.statistics import Statistics, bootstrap_lift


class GeneralAnswer(Part):
    """The bare base's answer to a general prompt, with the bits that the answer's tokens have under the base."""

    prompt: str
    answer: str
    token_ids: tuple[int, ...] = Field(min_length=1)
    bits: float


class AdapterBits(Part):
    """The bits of each answer under one adapter, or the error that kept them from being measured."""

    digest: str
    bits: tuple[float, ...]
    error: str | None = None


class GeneralityRecord(Part):
    """What was measured, by the adapter's name. num_failed: prompts that the base could not answer."""

    format_version: Literal[1] = 1
    base_digest: str
    dtype: str
    quantization_bits: Literal[4, 8] | None
    prompts_digest: str
    num_failed: int
    answers: tuple[GeneralAnswer, ...]
    adapters: dict[str, AdapterBits]

    def is_of(self, base: BaseRecord) -> bool:
        """Whether this was measured over that base, in the same precision."""
        own = (self.base_digest, self.dtype, self.quantization_bits)
        return own == (base.digest, base.dtype, base.quantization_bits)

    @model_validator(mode="after")
    def _bits_fit(self) -> Self:
        if any(found.error is None and len(found.bits) != len(self.answers) for found in self.adapters.values()):
            raise ValueError("there must be as many bits as answers")
        return self


class AdapterForgetting(Part):
    """One adapter: bits per token of the base's answers, and how much more that is than under the base."""

    name: str
    bits_per_token: float
    change: Score

    @property
    def perplexity_factor(self) -> float:
        return math.exp2(self.change.value)


class Forgetting(Part):
    """All adapters of a run. not_measured: names with the reason."""

    num_prompts: int
    num_tokens: int
    base_bits_per_token: float
    adapters: tuple[AdapterForgetting, ...]
    not_measured: dict[str, str]
    prompts_digest: str


def score_generality(folder: Path, run: RunRecord, seed: int) -> Forgetting | None:
    """What the record in `folder` says of the run's own adapters; None where there is none, or none of this base."""
    record = read_generality(folder)
    if record is None or not record.is_of(run.base):
        return None
    base = _statistics(record.answers, [answer.bits for answer in record.answers])
    measured, not_measured = [], {}
    for member in run.members:
        found = record.adapters.get(member.name)
        if found is None or found.digest != member.adapter_digest:
            not_measured[member.name] = "not measured"
        elif found.error is not None or not record.answers:
            not_measured[member.name] = found.error or "the base answered no prompt"
        else:
            rows = _statistics(record.answers, found.bits)
            change = score_of(bootstrap_lift(base, rows, _bits_per_token, seed=seed))
            own = round(_bits_per_token(rows.sum(axis=0).tolist()), 10)
            measured.append(AdapterForgetting(name=member.name, bits_per_token=own, change=change))
    if not measured:
        return None
    return Forgetting(
        num_prompts=len(record.answers),
        num_tokens=sum(len(answer.token_ids) for answer in record.answers),
        base_bits_per_token=round(_bits_per_token(base.sum(axis=0).tolist()), 10),
        adapters=tuple(measured),
        not_measured=not_measured,
        prompts_digest=record.prompts_digest,
    )


def read_generality(folder: Path) -> GeneralityRecord | None:
    """The record in `folder`, if there is one. Raises DataError for a damaged one."""
    path = generality_path(folder)
    return read_part(GeneralityRecord, path) if path.is_file() else None


def generality_path(folder: Path) -> Path:
    return folder / "raw" / "_generality.json"


def _statistics(answers: Sequence[GeneralAnswer], bits: Sequence[float]) -> Statistics:
    """[answers, 2]: bits and tokens, so that examples of the bootstrap are whole answers."""
    return np.asarray([(b, len(answer.token_ids)) for answer, b in zip(answers, bits, strict=True)], dtype=np.float64)


def _bits_per_token(sums: Sequence[float]) -> float:
    return sums[0] / sums[1]
