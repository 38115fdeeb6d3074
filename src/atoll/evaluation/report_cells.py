"""How figures are written in every form of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from atoll.config.task import PUBLISHED_NAMES
from atoll.evaluation.forgetting import AdapterForgetting
from atoll.evaluation.outputs import BASE, ContenderRecord, MemberRecord
from atoll.evaluation.results import FleetClaim, MemberResult, PublishedComparison, Results
from atoll.evaluation.scores import Comparison, Score

NONE = "–"
MAIN_PUBLISHED = ("mistral_7b", "gpt_4")  # the published columns of the main table


def interval(score: Score) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def signed_interval(score: Score) -> str:
    return f"{score.value:+.3f} [{score.low:+.3f}, {score.high:+.3f}]"


def against(comparison: Comparison, name: str) -> str:
    return comparison.verdict if comparison.verdict == "no difference shown" else f"{comparison.verdict} {name}"


def has_published(results: Results) -> bool:
    return any(member.published for member in results.members)


def caption(results: Results) -> str:
    # Not a bare asterisk, which Markdown would take for a list.
    return "(*) published scores, not run here: other examples and prompts" if has_published(results) else ""


def headings(results: Results) -> list[str]:
    """Of the main table: one column for each contender, then the lift over the base, then published scores."""
    published = [f"{PUBLISHED_NAMES[name]} (*)" for name in MAIN_PUBLISHED] if has_published(results) else []
    return ["adapter", "task", "metric", "n", *results.contenders[:-1], "tuned", "lift [95 %]", *published]


def main_row(results: Results, member: MemberResult) -> list[str]:
    """One cell for each of `headings`."""
    primary = member.primary
    scores = [f"{primary.scores[name].value:.3f}" if name in primary.scores else NONE for name in results.contenders]
    lift = signed_interval(primary.against[BASE].lift)
    published = [published_cell(member, name) for name in MAIN_PUBLISHED] if has_published(results) else []
    return [member.name, member.task, primary.metric, str(member.num_examples), *scores, lift, *published]


def published_cell(member: MemberResult, name: str) -> str:
    """A published score, with its metric where that is not the task's first one."""
    published = member.published
    value: float | None = getattr(published, name) if published else None
    if published is None or value is None:
        return NONE
    metric = "" if published.metric == member.primary.metric else f" ({published.metric})"
    return f"{value:.3f}{metric}"


def published_line(member: MemberResult, item: PublishedComparison) -> str:
    """Where the adapter's interval lies, in words that claim no more than that."""
    relation = {"beats": "lies above", "loses to": "lies below"}.get(item.verdict, "is not told apart from")
    score = next(result for result in member.metrics if result.metric == item.metric).scores["adapter"]
    return (
        f"{member.name}: {item.metric} {interval(score)} {relation} {PUBLISHED_NAMES[item.contender]}'s published "
        f"{item.score:.3f}"
    )


def published_totals(results: Results) -> list[str]:
    """For each published column: on how many tasks the adapters' intervals lie above it, and below it."""
    lines = []
    for name, title in PUBLISHED_NAMES.items():
        found = [c.verdict for member in results.members for c in member.published_comparisons if c.contender == name]
        if found:
            counts = Counter(found)
            lines.append(
                f"{title}'s published scores: the adapter's interval lies above on {counts['beats']} of {len(found)} "
                f"tasks, below on {counts['loses to']}, around it on {counts['no difference shown']}"
            )
    return lines


def claim_line(claim: FleetClaim) -> str:
    """What holds of the whole fleet, after correcting for as many tests as it has members."""
    lost = f", {len(claim.loses)} lose" if claim.loses else ""
    return f"{len(claim.beats)} of {len(claim.p_values)} adapters beat {claim.contender}{lost}"


def examples_text(member: MemberRecord) -> str:
    """How many examples were asked, of how many rows, and what was left out."""
    left_out = f"{member.num_duplicates} that repeat another and {member.num_leaked} that train has left out"
    rows = f" of {member.num_rows} rows, {left_out}" if member.num_rows else ""
    return f"{member.num_examples} examples of {member.split}{rows}"


def forgetting_line(adapter: AdapterForgetting) -> str:
    return f"{signed_interval(adapter.change)} bits a token, perplexity times {adapter.perplexity_factor:.2f}"


def warnings(member: MemberResult, names: Sequence[str] | None = None) -> list[str]:
    """What is wrong with answers, of all contenders or of those named."""
    wanted = member.primary.scores if names is None else names
    failed = Counter(failure.contender for failure in member.failures)
    lines = [f"{number} requests to the {name} failed and count as 0" for name, number in failed.items()]
    if member.num_cut_prompts:
        lines.append(f"{member.num_cut_prompts} prompts were cut to the adapter's length limit")
    for name in wanted:
        if number := member.num_unfinished.get(name, 0):
            lines.append(f"{number} answers of the {name} ended at the task's limit of new tokens")
    for name in wanted:
        if number := member.num_outside_labels.get(name, 0):
            lines.append(f"{number} answers of the {name} are none of the task's labels and count as 0")
    return lines


def total_cost(results: Results) -> dict[str, ContenderRecord]:
    """Each contender over the whole fleet. A cost is None where that of any part is not known."""
    totals: dict[str, ContenderRecord] = {}
    for contender in (contender for member in results.members for contender in member.contenders):
        before = totals.get(contender.name)
        totals[contender.name] = contender if before is None else _sum(before, contender)
    return totals


def _sum(first: ContenderRecord, second: ContenderRecord) -> ContenderRecord:
    known = first.cost_usd is not None and second.cost_usd is not None
    return first.model_copy(
        update={
            "cost_usd": (first.cost_usd or 0.0) + (second.cost_usd or 0.0) if known else None,
            "seconds": first.seconds + second.seconds,
            "num_prompt_tokens": first.num_prompt_tokens + second.num_prompt_tokens,
            "num_new_tokens": first.num_new_tokens + second.num_new_tokens,
        }
    )
