"""Answers of all contenders to the same examples: drawn, asked where no earlier run has the answer, and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atoll.config.fleet import QuantizationConfig
from atoll.config.prices import MachinePrice
from atoll.engine import Engine
from atoll.evaluation.answering import answer_locally, answer_remotely, local_asks, remote_calls
from atoll.evaluation.asking import Member, Prepared, prepare
from atoll.evaluation.contenders import Contender
from atoll.evaluation.journal import Journal
from atoll.evaluation.outputs import Inputs, MemberRecord, RunRecord, write_inputs, write_outputs, write_run
from atoll.evaluation.records import Answers, member_record, outputs, price_of, run_record
from atoll.evaluation.sampling import draw_sample
from atoll.evaluation.spending import DEFAULT_OPTIONS, RemoteOptions, token_rates
from atoll.model.cache import OnProgress

__all__ = ["NUM_EXAMPLES", "Member", "run_evaluation"]

NUM_EXAMPLES = 1_000


def run_evaluation(
    engine: Engine,
    members: Sequence[Member],
    folder: Path,
    *,
    fleet: str,
    against: Sequence[Contender] = (),
    data_root: Path | None = None,
    limit: int | None = NUM_EXAMPLES,
    seed: int = 0,
    quantization: QuantizationConfig | None = None,
    remote: RemoteOptions = DEFAULT_OPTIONS,
    is_fresh: bool = False,
    on_progress: OnProgress = lambda what, fraction: None,
) -> RunRecord:
    """Let all contenders of all members answer `limit` test examples, and write the answers and the run to `folder`.

    A request that fails, or an example that makes no prompt, is an answer with an `error`. Answers that an earlier run
    has left in `folder` are taken over unless `is_fresh`. Raises DataError for data that cannot be read, OverBudget,
    and what makes a remote contender pointless to ask; answers until then are kept.
    """
    prepared = []
    for member in members:
        on_progress(f"reading {member.task.name}", None)
        sample = draw_sample(member.task, data_root=data_root, limit=limit, seed=seed)
        bits = quantization.bits if quantization else None
        prepared.append(prepare(engine, member, sample, against, seed=seed, quantization_bits=bits))
    num_steps = engine.stats().num_steps
    with Journal(folder, is_fresh=is_fresh) as journal:
        answers = _answers(engine, prepared, journal, remote, on_progress)
    price = price_of(engine)
    run = run_record(
        engine,
        tuple(_write_member(folder, item, answers, price) for item in prepared),
        answers,
        price,
        num_steps=engine.stats().num_steps - num_steps,
        fleet=fleet,
        limit=limit,
        seed=seed,
        quantization=quantization,
    )
    write_run(folder, run)
    return run


def _answers(
    engine: Engine, prepared: Sequence[Prepared], journal: Journal, options: RemoteOptions, on_progress: OnProgress
) -> Answers:
    """Remote contenders first: a key or a model that is not accepted shows before hours of computing."""
    calls = remote_calls(prepared)
    rates = token_rates(list(calls), options)
    remote = answer_remotely(calls, rates, journal, options, on_progress)
    local = answer_locally(engine, local_asks(prepared, engine.stats().num_slots), journal, on_progress)
    return Answers(local, remote, {contender: journal.lost_usd(wanted) for contender, wanted in calls.items()})


def _write_member(folder: Path, item: Prepared, answers: Answers, price: MachinePrice) -> MemberRecord:
    name, task = item.member.adapter.name, item.member.task
    inputs = [
        Inputs(
            example_id=asked.example.example_id,
            columns={column: asked.example.row[column] for column in task.input_columns},
        )
        for asked in item.asked
    ]
    return member_record(
        item,
        answers,
        price,
        output_digests=write_outputs(folder, name, outputs(item, answers)),
        inputs_digest=write_inputs(folder, name, inputs),
    )
