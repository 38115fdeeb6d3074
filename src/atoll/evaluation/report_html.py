"""The report as one self-contained page (`report.html`), readable without a script and without the network."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from atoll.config.task import PUBLISHED_NAMES
from atoll.evaluation.plots import plots
from atoll.evaluation.report_cells import (
    claim_line,
    examples_text,
    published_cell,
    published_totals,
    total_cost,
    warnings,
)
from atoll.evaluation.report_examples import ShownExample
from atoll.evaluation.results import MemberResult, Results
from atoll.evaluation.vega import visible

_MAX_FAILURES_SHOWN = 20


class _Spent(NamedTuple):
    seconds: float
    cost_usd: float


def html(results: Results, examples: Mapping[str, Sequence[ShownExample]]) -> str:
    """The page. examples: by the member's name. What models and files say is escaped and never markup."""
    script = _file("report.js")
    has_source = [member.published.source for member in results.members if member.published]
    values: dict[str, Any] = {
        "results": results,
        "run": results.run,
        "examples": examples,
        "best": {m.name: max(score.value for score in m.primary.scores.values()) for m in results.members},
        "claims": [claim_line(claim) for claim in results.claims],
        "published": _published(results),
        "published_names": PUBLISHED_NAMES,
        "published_cell": published_cell,
        "examples_text": examples_text,
        "published_totals": published_totals(results),
        "sources": "; ".join(sorted(set(has_source))),
        "costs": list(total_cost(results).values()),
        "training": _training(results),
        "failures": [line for member in results.members for line in _failures(member)],
        # The template takes these as they are: Vega escapes the text in its SVGs, the rest is our own.
        "plots": plots(results),
        "css": _file("report.css"),
        "script": script,
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return visible(_environment().get_template("report.html").render(values))


@functools.cache
def _environment() -> Environment:
    loader = PackageLoader("atoll.evaluation", "templates")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )


def _file(name: str) -> str:
    return resources.files("atoll.evaluation").joinpath("templates", name).read_text(encoding="utf-8")


def _published(results: Results) -> list[str]:
    """The published columns that any task has."""
    found = [member.published for member in results.members if member.published]
    return [name for name in PUBLISHED_NAMES if any(getattr(published, name) is not None for published in found)]


def _training(results: Results) -> _Spent | None:
    records = [member.training for member in results.run.members if member.training]
    if not records:
        return None
    return _Spent(sum(record.seconds for record in records), sum(record.cost_usd for record in records))


def _failures(member: MemberResult) -> list[str]:
    lines = [f"{member.name}: {warning}" for warning in warnings(member)]
    shown = member.failures[:_MAX_FAILURES_SHOWN]
    lines += [f"{member.name}, {failure.contender}, example {failure.example_id}: {failure.error}" for failure in shown]
    if (num_more := len(member.failures) - len(shown)) > 0:
        lines.append(f"{member.name}: and {num_more} more, in results.json")
    return lines
