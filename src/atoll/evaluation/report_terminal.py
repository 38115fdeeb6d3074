"""The report on a terminal: a table, and what it does not show."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from atoll.evaluation.outputs import ADAPTER, BASE
from atoll.evaluation.report_cells import (
    MAIN_PUBLISHED,
    against,
    caption,
    claim_line,
    forgetting_line,
    headings,
    main_row,
    published_line,
    warnings,
)
from atoll.evaluation.results import Results

_LEFT = ("adapter", "task", "metric")
_STYLES = {"beats": "green", "loses to": "red"}


def terminal_table(results: Results) -> Table:
    """One row for each adapter, scored by its task's first metric."""
    table = Table(title=escape(f"{results.run.fleet} on {results.run.base.name}"), caption=caption(results))
    for heading in headings(results):
        table.add_column(escape(heading), justify="left" if heading in _LEFT else "right", overflow="fold")
    table.add_column("adapter vs base")
    for member in results.members:
        comparison = member.primary.against[BASE]
        cells = [*main_row(results, member), against(comparison, BASE)]
        table.add_row(*(escape(cell) for cell in cells), style=_STYLES.get(comparison.verdict))
    return table


def summary_lines(results: Results) -> list[str]:
    """What the table does not show: the fleet's claims, advice, published scores passed, forgetting, failures, cost."""
    level = f"Holm over the fleet, p < {results.statistics.max_p_value}"
    lines = [f"{claim_line(claim)} ({level})" for claim in results.claims]
    lines += [f"{member.name}: {member.advice.sentence}" for member in results.members]
    for member, record in zip(results.members, results.run.members, strict=True):
        comparisons = (item for item in member.published_comparisons if item.contender in MAIN_PUBLISHED)
        lines += [published_line(member, item) for item in comparisons]
        # That an untuned base rambles on, or says something else than a label, is no news.
        lines += [f"{member.name}: {note}" for note in (*record.notes, *warnings(member, (ADAPTER,)))]
    if results.forgetting:
        lines += [f"{item.name}: forgetting {forgetting_line(item)}" for item in results.forgetting.adapters]
        lines += [f"{name}: forgetting {why}" for name, why in results.forgetting.not_measured.items()]
    run = results.run
    num_tokens = run.num_prompt_tokens + run.num_new_tokens
    lines.append(f"{num_tokens} tokens in {run.seconds:.0f} s, {100 * run.cost_usd:.2f} cents ({run.price})")
    return lines
