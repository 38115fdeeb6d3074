"""The report of an evaluation, made from its raw answers alone: terminal table, results.json, Markdown and a plot.

<folder>/results.json, report.md, scores.svg
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from atoll.evaluation.outputs import ADAPTER, BASE
from atoll.evaluation.plot import scores_svg
from atoll.evaluation.results import Comparison, MemberResult, PublishedComparison, Results, Score, score_run
from atoll.files import write_atomic

_MAX_FAILURES_SHOWN = 20
_PUBLISHED_NAMES = {"mistral_7b": "Mistral-7B tuned", "gpt_4": "GPT-4"}
_NONE = "–"


def write_report(folder: Path) -> Results:
    """Score the raw answers in `folder` and write the report there; equal answers give equal bytes.

    Raises NotFound or DataError for raw files that are missing or damaged.
    """
    results = score_run(folder)
    write_atomic(folder / "results.json", results.model_dump_json(indent=2) + "\n")
    write_atomic(folder / "scores.svg", scores_svg(results))
    write_atomic(folder / "report.md", markdown(results))
    return results


def terminal_table(results: Results) -> Table:
    """One row for each adapter, scored by its task's first metric."""
    table = Table(title=escape(f"{results.run.fleet} on {results.run.base.name}"), caption=_caption(results))
    left = ("adapter", "task", "metric")
    for heading in _headings(results):
        table.add_column(heading, justify="left" if heading in left else "right", overflow="fold")
    table.add_column("adapter vs base")
    for member in results.members:
        comparison = member.primary.against[BASE]
        style = {"beats": "green", "loses to": "red"}.get(comparison.verdict)
        cells = [*_main_row(results, member), _against_base(comparison)]
        table.add_row(*(escape(cell) for cell in cells), style=style)
    return table


def summary_lines(results: Results) -> list[str]:
    """What the table does not show: published scores passed, failures, notes, time and cost."""
    lines = [_published_line(member, item) for member in results.members for item in member.published_comparisons]
    for member, record in zip(results.members, results.run.members, strict=True):
        lines += [f"{member.name}: {note}" for note in (*record.notes, *_warnings(member, of_base=False))]
    run = results.run
    num_tokens = run.num_prompt_tokens + run.num_new_tokens
    lines.append(f"{num_tokens} tokens in {run.seconds:.0f} s, {100 * run.cost_usd:.2f} cents ({run.price})")
    return lines


def markdown(results: Results) -> str:
    """The whole report as Markdown; the plot is the file scores.svg beside it."""
    sections = [
        _heading(results),
        _main_section(results),
        _metrics_section(results),
        _published_section(results),
        _failures_section(results),
        _making_section(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _heading(results: Results) -> str:
    run = results.run
    limit = "all" if run.limit is None else f"at most {run.limit}"
    return (
        f"# {_cell(run.fleet)}: adapters against {_cell(run.base.name)}\n\n"
        f"Every contender answered the same prompts greedily: {limit} examples of each task's test split, drawn with "
        f"the seed {run.seed}. A request that failed counts as 0."
    )


def _main_section(results: Results) -> str:
    rows = []
    for member in results.members:
        comparison = member.primary.against[BASE]
        rows.append([*_main_row(results, member), f"{comparison.p_value:.4f}", _against_base(comparison)])
    stats = results.statistics
    caption = f"{_caption(results)}. " if _caption(results) else ""
    return (
        f"{_table([*_headings(results), 'p', 'adapter vs base'], rows)}\n\n"
        f"{caption}Intervals hold {100 * stats.confidence:.0f} % of {stats.num_resamples} bootstrap resamples of "
        f"the examples (the exact binomial interval at 0 and 1); p is that of a paired permutation test "
        f"({stats.num_permutations} permutations). An adapter *beats* the base only if its lift's interval lies above "
        f"0 and p is below {stats.max_p_value}.\n\n![Scores by task](scores.svg)"
    )


def _metrics_section(results: Results) -> str:
    rows = [
        [member.name, result.metric, _interval(result.scores[BASE]), _interval(result.scores[ADAPTER]),
         _signed_interval(result.against[BASE].lift), _against_base(result.against[BASE])]
        for member in results.members
        for result in member.metrics
    ]  # fmt: skip
    header = ["adapter", "metric", "base [95 %]", "tuned [95 %]", "lift [95 %]", "verdict"]
    return (
        f"## All metrics\n\n{_table(header, rows)}\n\n"
        "Metrics that end in `_published` repeat the measure of the published scores, with its faults."
    )


def _published_section(results: Results) -> str:
    lines = [
        f"- {_published_line(member, item)}" for member in results.members for item in member.published_comparisons
    ]
    if not lines:
        return ""
    sources = sorted({member.published.source for member in results.members if member.published})
    return (
        "## Against published scores\n\n"
        + "\n".join(lines)
        + "\n\nThe published score is taken as exact and was measured on other examples with other prompts, so this "
        f"says where a figure lies and is no test between two models. Source: {'; '.join(sources)}."
    )


def _failures_section(results: Results) -> str:
    lines = []
    for member in results.members:
        lines += [f"- {member.name}: {warning}" for warning in _warnings(member, of_base=True)]
        for failure in member.failures[:_MAX_FAILURES_SHOWN]:
            lines.append(f"  - {failure.contender}, example `{failure.example_id}`: {_cell(failure.error)}")
        if (num_more := len(member.failures) - _MAX_FAILURES_SHOWN) > 0:
            lines.append(f"  - and {num_more} more, in results.json")
    return "## Failures and limits\n\n" + ("\n".join(lines) if lines else "Every request was answered to its end.")


def _making_section(results: Results) -> str:
    run, base = results.run, results.run.base
    bits = f", quantised to {base.quantization_bits} bits" if base.quantization_bits else ""
    lines = [
        f"- Base model: `{_cell(base.name)}`, `{base.digest}`, {base.num_params} parameters, {base.dtype}{bits}",
        f"- Run: {run.created}, on {_cell(base.device)}; {run.seconds:.0f} s, {run.num_steps} steps, "
        f"{run.num_prompt_tokens} prompt tokens, {run.num_new_tokens} new ones; ${run.cost_usd:.4f} "
        f"({_cell(run.price)})",
        "- Versions: " + ", ".join(f"{name} {version}" for name, version in run.versions.items()),
    ]
    for member in run.members:
        cost = (
            ""
            if member.training is None
            else f"; trained in {member.training.seconds:.0f} s for ${member.training.cost_usd:.4f}"
        )
        lines.append(
            f"- {member.adapter_id}: `{member.adapter_digest}`, data `{member.data_digest}` "
            f"({member.num_examples} examples of {member.split}){cost}"
        )
        lines += [f"  - {_cell(note)}" for note in member.notes]
    return (
        "## How it was made\n\n" + "\n".join(lines) + "\n\nEvery answer is in `raw/`, every figure in `results.json`."
    )


def _has_published(results: Results) -> bool:
    return any(member.published for member in results.members)


def _caption(results: Results) -> str:
    # Not a bare asterisk, which Markdown would take for a list.
    return "(*) published scores, not run here: other examples and prompts" if _has_published(results) else ""


def _headings(results: Results) -> list[str]:
    published = [f"{name} (*)" for name in _PUBLISHED_NAMES.values()] if _has_published(results) else []
    return ["adapter", "task", "metric", "n", "base", "tuned", "lift [95 %]", *published]


def _main_row(results: Results, member: MemberResult) -> list[str]:
    """One cell for each of `_headings`."""
    primary = member.primary
    published = [_published_cell(member, name) for name in _PUBLISHED_NAMES] if _has_published(results) else []
    return [
        member.name,
        member.task,
        primary.metric,
        str(member.num_examples),
        f"{primary.scores[BASE].value:.3f}",
        f"{primary.scores[ADAPTER].value:.3f}",
        _signed_interval(primary.against[BASE].lift),
        *published,
    ]


def _published_cell(member: MemberResult, name: str) -> str:
    published = member.published
    value: float | None = getattr(published, name) if published else None
    if published is None or value is None:
        return _NONE
    metric = "" if published.metric == member.primary.metric else f" ({published.metric})"
    return f"{value:.3f}{metric}"


def _published_line(member: MemberResult, item: PublishedComparison) -> str:
    relation = {"beats": "lies above", "loses to": "lies below"}.get(item.verdict, "is not told apart from")
    score = next(result for result in member.metrics if result.metric == item.metric).scores[ADAPTER]
    return (
        f"{member.name}: {item.metric} {_interval(score)} {relation} {_PUBLISHED_NAMES[item.contender]}'s published "
        f"{item.score:.3f}"
    )


def _warnings(member: MemberResult, *, of_base: bool) -> list[str]:
    """of_base: say also where the base did not come to an end, which is what untuned models do."""
    failed = Counter(failure.contender for failure in member.failures)
    warnings = [f"{number} requests to the {name} failed and count as 0" for name, number in failed.items()]
    if member.num_cut_prompts:
        warnings.append(f"{member.num_cut_prompts} prompts were cut to the adapter's length limit")
    for contender, number in member.num_unfinished.items():
        if number and (of_base or contender != BASE):
            warnings.append(f"{number} answers of the {contender} ended at the task's limit of new tokens")
    return warnings


def _against_base(comparison: Comparison) -> str:
    return comparison.verdict if comparison.verdict == "no difference shown" else f"{comparison.verdict} base"


def _interval(score: Score) -> str:
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def _signed_interval(score: Score) -> str:
    return f"{score.value:+.3f} [{score.low:+.3f}, {score.high:+.3f}]"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """`text` on one line and without what would break a table."""
    return " ".join(text.split()).replace("|", "\\|")
