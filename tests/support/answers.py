"""Answers written by hand, and the results that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atoll.evaluation.outputs import ADAPTER, BASE, BaseRecord, MemberRecord, Output, RunRecord
from atoll.evaluation.results import Results, StatisticsRecord, score_member


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


def make_results(*scored: tuple[MemberRecord, Sequence[Output], Sequence[Output]], fleet: str = "tiny") -> Results:
    run = RunRecord(
        created="2026-01-01T00:00:00+00:00",
        fleet=fleet,
        base=BaseRecord(name="base", digest="sha256:1", num_params=1, dtype="float32", device="cpu"),
        limit=100,
        seed=0,
        members=tuple(item[0] for item in scored),
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
    members = tuple(score_member(item, {BASE: base, ADAPTER: tuned}, 0) for item, base, tuned in scored)
    return Results(members=members, statistics=StatisticsRecord(seed=0), run=run)
