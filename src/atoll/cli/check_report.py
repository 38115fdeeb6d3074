"""The report of `atoll check`, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from atoll.cli.bill_report import duration
from atoll.config.prices import MachinePrice, cost_usd
from atoll.errors import AtollError
from atoll.tasks.audit import SplitAudit, TaskAudit, TokenAudit, XRay
from atoll.tasks.estimate import FleetEstimate

_BARS = " ▁▂▃▄▅▆▇█"
_MAX_PROMPT_CHARS = 700
_MAX_LABELS_SHOWN = 12
_INDENT = 11


def audit_lines(name: str, audit: TaskAudit, *, in_color: bool) -> Iterator[str]:
    """All that was found about one adapter's task."""
    yield _style(name, in_color, bold=True)
    for split in audit.splits:
        yield _field(split.split, _split_text(split))
    if audit.labels:
        yield _field("labels", _label_text(audit.labels))
    yield from _token_lines(audit.tokens)
    for xray in audit.xrays:
        yield from xray_lines(xray, in_color=in_color)
    for warning in audit.warnings:
        yield f"  {_style('warning:', in_color, fg='yellow')} {visible(warning)}"
    for problem in audit.problems:
        yield f"  {_style('problem:', in_color, fg='red')} {visible(problem)}"
    yield ""


def error_lines(name: str, error: AtollError | None) -> Iterator[str]:
    """An adapter whose task could not be looked at."""
    yield name
    yield f"  problem: {visible(str(error), keep=chr(10))}"
    yield ""


def estimate_lines(estimate: FleetEstimate, price: MachinePrice) -> Iterator[str]:
    """What training will take."""
    for member in estimate.members:
        yield (
            f"{member.name}: {member.num_steps:,} steps, {member.num_train_tokens:,} training tokens, "
            f"{member.num_params / 1e6:.2f}M parameters"
        )
    yield (
        f"estimate, without early stopping: about {duration(estimate.seconds)}, "
        f"{estimate.memory_bytes / 1e9:.1f} GB of memory, {100 * cost_usd(estimate.seconds, price):.2f} cents"
    )
    yield f"  time from a product of two matrices on this machine; {price.name}: ${price.usd_per_hour} an hour"
    yield f"  ({price.source}, {price.date})"


def visible(text: str, keep: str = "") -> str:
    """Text without control characters, which could steer the terminal, but for those in `keep`."""
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode("ascii") for char in text
    )


def _style(text: str, in_color: bool, **style: Any) -> str:
    return typer.style(text, **style) if in_color else text


def _field(name: str, text: str) -> str:
    return f"  {name:<{_INDENT}}{text}"


def _split_text(split: SplitAudit) -> str:
    parts = [f"{split.num_rows:,} rows"]
    if split.num_used < split.num_rows:
        parts.append(f"{split.num_used:,} used")
    parts.append(f"{split.num_duplicates:,} duplicates")
    if split.split != "train":
        parts.append(f"{split.num_leaked:,} also in train")
    if split.num_contradictory:
        parts.append(f"{split.num_contradictory:,} inputs with several answers")
    return ", ".join(parts)


def _label_text(labels: dict[str, int]) -> str:
    total = sum(labels.values())
    shown = list(labels.items())[:_MAX_LABELS_SHOWN]
    text = ", ".join(f"{visible(label) or '(empty)'}: {100 * count / total:.0f} %" for label, count in shown)
    return text + (f", and {len(labels) - len(shown)} more" if len(labels) > len(shown) else "")


def _token_lines(tokens: TokenAudit) -> Iterator[str]:
    trained = 100 * tokens.num_target_tokens / tokens.num_tokens
    yield _field(
        "tokens",
        f"median {tokens.median:,}, 95 % {tokens.p95:,}, 99 % {tokens.p99:,}, longest {tokens.longest:,}; "
        f"{trained:.0f} % of all are trained",
    )
    largest = max(count for _, count in tokens.histogram)
    bars = "".join(_bar(count, largest) for _, count in tokens.histogram)
    yield _field("lengths", f"|{bars}| up to {tokens.histogram[-1][0]:,} tokens")
    yield _field("limit", f"{tokens.max_length:,} tokens, {tokens.num_cut:,} examples cut")


def _bar(count: int, largest: int) -> str:
    return _BARS[max(1, round(count / largest * (len(_BARS) - 1)))] if count else _BARS[0]


def xray_lines(xray: XRay, *, in_color: bool) -> Iterator[str]:
    """An example; its trained tokens are coloured, or each in brackets where there is no colour."""
    prompt = xray.prompt
    if len(prompt) > _MAX_PROMPT_CHARS:
        half = _MAX_PROMPT_CHARS // 2
        prompt = f"{prompt[:half]} ... {prompt[-half:]}"
    answer = "".join(
        typer.style(visible(token), fg="black", bg="cyan" if index % 2 else "green")
        if in_color
        else f"[{visible(token)}]"
        for index, token in enumerate(xray.trained)
    )
    cut = f" ({xray.num_cut_tokens:,} more were cut)" if xray.num_cut_tokens else ""
    yield _field("example", f"{xray.num_prompt_tokens:,} prompt tokens{cut}, {len(xray.trained):,} trained")
    yield from (f"    {line}" for line in (visible(prompt, keep="\n") + answer).split("\n"))
