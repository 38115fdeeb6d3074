"""`atoll check`: what a fleet's data look like to the model, and what training on them will take."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.ludwig_file import Dataset, as_fleet
from atoll.cli.options import DataRoot, Fleet

if TYPE_CHECKING:
    from atoll.config.fleet import FleetConfig, FleetMember
    from atoll.config.prices import MachinePrice
    from atoll.config.task import TaskConfig
    from atoll.errors import AtollError
    from atoll.tasks.audit import TaskAudit
    from atoll.tasks.dataset import Example, Split
    from atoll.tasks.estimate import FleetEstimate
    from atoll.training.quote import Quote


@dataclass(frozen=True)
class _Checked:
    """One adapter of the fleet with what was found, or with the error that kept it from being looked at."""

    member: FleetMember
    audit: TaskAudit | None
    error: AtollError | None

    @property
    def num_problems(self) -> int:
        return len(self.audit.problems) if self.audit else 1


def check(
    fleet: Fleet,
    data_root: DataRoot = None,
    dataset: Dataset = None,
    adapter: Annotated[list[str] | None, typer.Option(help="Only this adapter; may be repeated.")] = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Time real training passes for 20 s, for a better quote.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look at a fleet's data and tokens, and quote time, memory and cost. Publishes nothing.

    The quote comes from some training passes on the base, whose adapters are thrown away; it is kept in the folder of
    the run, and `atoll tune` sets it against what the run took.

    Example: atoll check examples/demo.yaml
    """
    from atoll.cli.check_report import estimate_lines
    from atoll.config.load import load_fleet
    from atoll.errors import DataError
    from atoll.model.load import load_config, load_tokenizer
    from atoll.model.source import resolve_base
    from atoll.text.tokenizer import end_ids

    config = load_fleet(as_fleet(fleet, dataset))
    if adapter:
        config = config.only(adapter)
    base = resolve_base(config.base_model, on_progress=lambda what, _: print(what, file=sys.stderr))
    tokenizer, base_config = load_tokenizer(base.folder), load_config(base.folder)
    checked = []
    for member in config.members():
        checked.append(_check_member(member, tokenizer, base_config, end_ids(tokenizer), data_root))
        if not as_json:
            _print_audit(checked[-1])
    estimate, price = _estimate(config, checked, base_config)
    num_problems = sum(item.num_problems for item in checked)
    if not as_json and estimate is not None and price is not None:
        print("\n".join(estimate_lines(estimate, price)), flush=True)
    quote = None
    if probe and estimate is not None and not num_problems:
        quote = _probe(config, estimate, data_root, as_json=as_json)
    if as_json:
        print(json.dumps(_as_json(checked, estimate, price, quote), ensure_ascii=False))
    if num_problems:
        count = "1 problem stands" if num_problems == 1 else f"{num_problems} problems stand"
        raise DataError(f"{count} in the way of training", mend="see `problem:` above")


def _print_audit(found: _Checked) -> None:
    from atoll.cli.check_report import audit_lines, error_lines

    in_color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    name = f"{found.member.name}: {found.audit.task if found.audit else found.member.task_ref}"
    lines = audit_lines(name, found.audit, in_color=in_color) if found.audit else error_lines(name, found.error)
    print("\n".join(lines), flush=True)


def _probe(config: FleetConfig, estimate: FleetEstimate, data_root: Path | None, *, as_json: bool) -> Quote | None:
    """Quote the fleet from training passes, where the estimate says that they fit into memory and a probe's time."""
    from atoll.cli.bill_report import quote_lines
    from atoll.cli.probing import obstacle
    from atoll.model.load import load_base
    from atoll.training.probe import PROBE_S, probe_fleet
    from atoll.training.quote import keep_quote

    if why := obstacle(estimate, config.trainer.token_budget, PROBE_S):
        print(f"no probe: {why}", file=sys.stderr)
        return None
    print(f"probe: loading the base, then training passes for about {PROBE_S:.0f} s ...", file=sys.stderr, flush=True)
    base = load_base(config.base_model, dtype=config.dtype, quantization=config.quantization)
    quote = probe_fleet(config, base, data_root=data_root)
    path = keep_quote(Path(config.output or ""), quote)
    if not as_json:
        print("\n".join(quote_lines(quote)))
        print(f"  kept in {path}, for `atoll tune` to compare")
    return quote


def _check_member(
    member: FleetMember, tokenizer: Any, base_config: Any, ends: frozenset[int], data_root: Path | None
) -> _Checked:
    from atoll.errors import ConfigError, DataError
    from atoll.model.load import max_positions
    from atoll.tasks.audit import audit_task
    from atoll.tasks.metrics import find_metric
    from atoll.tasks.task import find_task

    task = find_task(member.task_ref)
    try:
        for name in task.metrics:
            find_metric(name, where=member.task_ref)
        audit = audit_task(
            task,
            tokenizer,
            _splits(task, member.data.seed, data_root),
            data=member.data,
            end_ids=ends,
            model_max_length=max_positions(base_config),
        )
        return _Checked(member, audit, None)
    except (ConfigError, DataError) as error:
        return _Checked(member, None, error)


def _splits(task: TaskConfig, seed: int, data_root: Path | None) -> dict[Split, list[Example]]:
    """All splits of a task, whole; a task for training alone need not have a test split."""
    from atoll.tasks.dataset import SPLITS, has_split, load_split

    return {
        split: load_split(task, split, data_root=data_root, seed=seed)
        for split in SPLITS
        if split != "test" or has_split(task, split, data_root=data_root)
    }


def _estimate(
    config: FleetConfig, checked: Sequence[_Checked], base_config: Any
) -> tuple[FleetEstimate | None, MachinePrice | None]:
    import torch

    from atoll.config.prices import hourly_price
    from atoll.model.load import auto_dtype
    from atoll.tasks.estimate import base_shape, estimate_fleet, estimate_member, measure_speed

    pairs = [(item.member, item.audit) for item in checked if item.audit is not None]
    if not pairs:
        return None, None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = auto_dtype(device) if config.dtype == "auto" else getattr(torch, config.dtype)
    shape = base_shape(base_config)
    estimate = estimate_fleet(
        config,
        [estimate_member(member, audit, shape) for member, audit in pairs],
        [audit for _, audit in pairs],
        shape,
        bytes_per_param=dtype.itemsize,
        flop_per_second=measure_speed(device, dtype),
    )
    machine = torch.cuda.get_device_name() if device.type == "cuda" else None
    return estimate, hourly_price(machine, device=device.type, num_cpus=os.cpu_count() or 1)


def _as_json(
    checked: Sequence[_Checked], estimate: FleetEstimate | None, price: MachinePrice | None, quote: Quote | None
) -> dict[str, Any]:
    from atoll.config.prices import cost_usd

    adapters = {
        item.member.name: asdict(item.audit)
        if item.audit
        else {"task": item.member.task_ref, "problems": [str(item.error)]}
        for item in checked
    }
    expected = None
    if estimate is not None and price is not None:
        expected = asdict(estimate) | {"cost_usd": cost_usd(estimate.seconds, price), "price": asdict(price)}
    return {"adapters": adapters, "estimate": expected, "quote": quote.model_dump() if quote else None}
