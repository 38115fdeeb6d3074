"""Answers written by hand, and the results that are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atoll.evaluation.outputs import (
    ADAPTER,
    BASE,
    BaseRecord,
    ContenderKind,
    ContenderRecord,
    Inputs,
    MemberRecord,
    Output,
    RunRecord,
    write_inputs,
    write_outputs,
    write_run,
)
from atoll.evaluation.results import Results, StatisticsRecord, example_tables, fleet_claims, score_member


def output(prediction: str, reference: str, number: int = 0, error: str | None = None) -> Output:
    return Output(
        example_id=f"{number:016x}",
        prompt_digest="",
        prediction=prediction,
        reference=reference,
        finish_reason=None if error else "stop",
        num_prompt_tokens=5,
        num_cut_tokens=0,
        num_new_tokens=1,
        error=error,
    )


def outputs(num_right: int, num_examples: int) -> list[Output]:
    """Answers to a yes-or-no task of which the first `num_right` are right."""
    return [output("yes" if i < num_right else "no", "yes", i) for i in range(num_examples)]


def record(name: str = "mood", **fields: Any) -> MemberRecord:
    defaults: dict[str, Any] = {
        "name": name,
        "adapter_id": f"{name}@1",
        "adapter_digest": "a" * 64,
        "task": "glue_sst2",
        "category": "reasoning",
        "metrics": ("accuracy",),
        "published": None,
        "split": "test",
        "data_digest": "sha256:0",
        "num_examples": 100,
        "max_length": 64,
        "max_new_tokens": 4,
        "stop": (),
        "training": None,
        "output_digests": {},
    }
    return MemberRecord.model_validate(defaults | fields)


def contender(name: str, kind: ContenderKind, **fields: Any) -> ContenderRecord:
    return ContenderRecord(name=name, kind=kind, **fields)


def run_record(*members: MemberRecord, fleet: str = "tiny") -> RunRecord:
    return RunRecord(
        created="2026-01-01T00:00:00+00:00",
        fleet=fleet,
        base=BaseRecord(name="base", digest="sha256:1", num_params=135_000_000, dtype="float32", device="cpu"),
        limit=100,
        seed=0,
        members=members,
        seconds=1.0,
        num_prompt_tokens=10,
        num_new_tokens=10,
        num_steps=1,
        cost_usd=0.01,
        price="m, $1/h",
        max_batch_tokens=512,
        max_num_requests=32,
        versions={"atoll": "0"},
    )


def score_all(*scored: tuple[MemberRecord, Mapping[str, Sequence[Output]]], fleet: str = "tiny") -> Results:
    """The results of members with any contenders; those beside base and adapter must have their records."""
    members = tuple(score_member(item, answers, example_tables(item, answers), 0) for item, answers in scored)
    return Results(
        members=members,
        claims=fleet_claims(members),
        forgetting=None,
        transfer=None,
        statistics=StatisticsRecord(seed=0),
        run=run_record(*(item for item, _ in scored), fleet=fleet),
    )


def make_results(*scored: tuple[MemberRecord, Sequence[Output], Sequence[Output]], fleet: str = "tiny") -> Results:
    """The results of members with base and adapter alone."""
    return score_all(*((item, {BASE: base, ADAPTER: tuned}) for item, base, tuned in scored), fleet=fleet)


def write_raw(
    folder: Path,
    *scored: tuple[MemberRecord, Mapping[str, Sequence[Output]]],
    inputs: Sequence[Inputs] = (),
    fleet: str = "tiny",
) -> RunRecord:
    """The raw files of a run with these answers; `inputs` are every member's."""
    members = []
    for member, answers in scored:
        digests = write_outputs(folder, member.name, answers)
        written = {"output_digests": digests}
        if inputs:
            written["inputs_digest"] = write_inputs(folder, member.name, inputs)
        members.append(member.model_copy(update=written))
    run = run_record(*members, fleet=fleet)
    write_run(folder, run)
    return run
