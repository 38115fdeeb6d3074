"""Evaluating a fleet: its members' adapters from the store, the base they belong to, an engine with room for all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from atoll.adapters.contract import AdapterContract
from atoll.adapters.peft_io import read_adapter
from atoll.adapters.store import AdapterStore, StoredAdapter
from atoll.config.fleet import FleetConfig, FleetMember
from atoll.config.task import TaskConfig
from atoll.engine import Engine, EngineConfig, build_engine
from atoll.errors import AdapterNotFound, Incompatible
from atoll.evaluation.card import update_cards
from atoll.evaluation.contenders import Contender, Remote
from atoll.evaluation.generality import measure_generality
from atoll.evaluation.report import write_report
from atoll.evaluation.results import Results
from atoll.evaluation.run import NUM_EXAMPLES, Member, run_evaluation
from atoll.evaluation.sampling import draw_sample
from atoll.evaluation.spending import DEFAULT_OPTIONS, RemoteOptions, token_rates
from atoll.evaluation.transfer_run import run_transfer
from atoll.model.cache import OnProgress
from atoll.model.load import load_base
from atoll.model.source import resolve_base
from atoll.tasks.metrics import find_metric
from atoll.tasks.task import find_task

_MAX_SLOTS = 32
# Sequences in one step: more of them read the weights less often, until the arithmetic is what takes the time.
_CPU_LIMITS = EngineConfig(max_batch_tokens=512, max_num_requests=32)
_CUDA_LIMITS = EngineConfig(max_batch_tokens=4096, max_num_requests=256)


def evaluate_fleet(
    config: FleetConfig,
    *,
    fleet_path: Path,
    store: AdapterStore,
    folder: Path,
    adapter_ids: Sequence[str] = (),
    data_root: Path | None = None,
    limit: int | None = NUM_EXAMPLES,
    seed: int = 0,
    against: Sequence[Contender] = (),
    remote: RemoteOptions = DEFAULT_OPTIONS,
    is_fresh: bool = False,
    forgetting: bool = True,
    num_transfer: int = 0,
    on_progress: OnProgress = lambda what, fraction: None,
) -> Results:
    """Evaluate the fleet's adapters, or those of `adapter_ids` (name or name@revision), and write all to `folder`.

    forgetting: measure what tuning cost in generality. num_transfer: examples of each task that every adapter answers.
    The scores also go into the model cards. Raises, before anything is loaded, AdapterNotFound for an adapter that is
    not tuned yet, Incompatible for one of another base or task, UsageError for a contender without a key or a price.
    """
    _check_remote([item for item in against if isinstance(item, Remote)], remote)
    base_digest = resolve_base(config.base_model, on_progress).digest
    members = [_member(config, *selected, store, base_digest, fleet_path) for selected in _select(config, adapter_ids)]
    with closing(_engine(config, members, on_progress)) as engine:
        run_evaluation(
            engine,
            members,
            folder,
            fleet=fleet_path.stem,
            data_root=data_root,
            limit=limit,
            seed=seed,
            quantization=config.quantization,
            against=against,
            remote=remote,
            is_fresh=is_fresh,
            on_progress=on_progress,
        )
        if forgetting:
            adapters = [member.adapter for member in members]
            measure_generality(engine, adapters, folder, quantization=config.quantization, on_progress=on_progress)
        if num_transfer:
            _ask_all(engine, members, folder, num_transfer, data_root, seed, on_progress)
    on_progress("scoring", None)
    results = write_report(folder)
    update_cards(store, results)
    return results


def _engine(config: FleetConfig, members: Sequence[Member], on_progress: OnProgress) -> Engine:
    """An engine with slots for all members, or as many as are worth their memory."""
    max_rank = max(_rank(member.adapter) for member in members)
    base = load_base(config.base_model, dtype=config.dtype, quantization=config.quantization, on_progress=on_progress)
    limits = _CUDA_LIMITS if base.device.type == "cuda" else _CPU_LIMITS
    return build_engine(base, num_slots=min(len(members), _MAX_SLOTS), max_rank=max_rank, config=limits)


def _ask_all(
    engine: Engine,
    members: Sequence[Member],
    folder: Path,
    num_examples: int,
    data_root: Path | None,
    seed: int,
    on_progress: OnProgress,
) -> None:
    """Every adapter on the first examples of every task."""
    drawn = [draw_sample(item.task, data_root=data_root, limit=num_examples, seed=seed) for item in members]
    asked = [(member, sample.examples) for member, sample in zip(members, drawn, strict=True)]
    run_transfer(engine, asked, folder, num_examples=num_examples, seed=seed, on_progress=on_progress)


def _check_remote(contenders: Sequence[Remote], options: RemoteOptions) -> None:
    """Raise UsageError for what would stop these contenders only after the base is loaded."""
    for contender in contenders:
        contender.key()
    token_rates(contenders, options)


def _select(config: FleetConfig, adapter_ids: Sequence[str]) -> list[tuple[FleetMember, str]]:
    """The wanted members with their adapter ids, all of them unless some are named."""
    ids = {adapter_id.partition("@")[0]: adapter_id for adapter_id in adapter_ids}
    names = [adapter_id.partition("@")[0] for adapter_id in adapter_ids]
    members = config.only(names).members() if names else config.members()
    return [(member, ids.get(member.name, member.name)) for member in members]


def _member(
    config: FleetConfig, member: FleetMember, adapter_id: str, store: AdapterStore, base_digest: str, fleet_path: Path
) -> Member:
    task = find_task(member.task_ref)
    for metric in task.metrics:
        find_metric(metric, where=member.task_ref)
    mend = f"atoll tune {fleet_path}"
    adapter = _resolve(store, member.name, adapter_id, mend)
    contract = adapter.contract
    if contract is None:
        why = "it has no atoll.json, which says how its prompts are written"
        raise Incompatible(f"{adapter.id} cannot be evaluated", where=str(adapter.folder), why=why, mend=mend)
    if contract.base.digest != base_digest:
        raise Incompatible(
            f"{adapter.id} belongs to another base model",
            where=str(fleet_path),
            why=f"it was tuned on {contract.base.name} ({contract.base.digest[:19]}), "
            f"the fleet's is {config.base_model} ({base_digest[:19]})",
            mend=f"set `base_model: {contract.base.name}`, or tune it again: {mend}",
        )
    _check_task(adapter.id, contract, task, where=str(fleet_path), mend=mend)
    return Member(adapter, contract, task, notes=_notes(config, contract, task))


def _resolve(store: AdapterStore, name: str, adapter_id: str, mend: str) -> StoredAdapter:
    if name not in store.names():
        raise AdapterNotFound(f"the adapter {name!r} is not tuned yet", where=str(store.root), mend=mend)
    return store.resolve(adapter_id)


def _check_task(adapter_id: str, contract: AdapterContract, task: TaskConfig, *, where: str, mend: str) -> None:
    """Raise Incompatible unless the task's rows still have what the adapter's prompt and target need."""
    why = None
    if contract.task != task.name:
        why = f"it was tuned on the task {contract.task}, the fleet names {task.name}"
    elif missing := [column for column in contract.prompt.columns if column not in task.input_columns]:
        why = f"its prompt uses the column {missing[0]!r}, which is no input column of the task now"
    elif contract.target_column != task.target_column:
        why = f"it was tuned to answer with {contract.target_column!r}, the task's target is {task.target_column!r} now"
    if why:
        raise Incompatible(f"{adapter_id} belongs to another task", where=where, why=why, mend=mend)


def _notes(config: FleetConfig, contract: AdapterContract, task: TaskConfig) -> tuple[str, ...]:
    """What a reader of the scores must know of differences between tuning and now."""
    notes = []
    if contract.prompt != task.prompt:
        notes.append("the task's prompt has changed since this adapter was tuned: the prompt it was tuned with is used")
    bits = config.quantization.bits if config.quantization else None
    if contract.base.quantization_bits != bits:
        tuned, now = (f"{n} bits" if n else "full precision" for n in (contract.base.quantization_bits, bits))
        notes.append(f"tuned over a base model in {tuned}, evaluated over one in {now}")
    return tuple(notes)


def _rank(adapter: StoredAdapter) -> int:
    """The largest rank of an adapter; reading its files here finds a damaged one before anything is generated."""
    return read_adapter(adapter.folder).max_rank
