"""The report as Markdown (`report.md`); the plot is the file scores.svg beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from atoll.evaluation.outputs import ADAPTER, BASE
from atoll.evaluation.report_cells import (
    MAIN_PUBLISHED,
    NONE,
    against,
    caption,
    claim_line,
    examples_text,
    headings,
    interval,
    main_row,
    published_line,
    published_totals,
    signed_interval,
    total_cost,
    warnings,
)
from atoll.evaluation.results import Results

_MAX_FAILURES_SHOWN = 20


def markdown(results: Results) -> str:
    """The whole report."""
    sections = [
        _heading(results),
        _main_section(results),
        _claims_section(results),
        _advice_section(results),
        _metrics_section(results),
        _published_section(results),
        _forgetting_section(results),
        _transfer_section(results),
        _cost_section(results),
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
        f"the seed {run.seed}. A request that failed counts as 0. Plots, and answers side by side, are in report.html."
    )


def _main_section(results: Results) -> str:
    rows = []
    for member in results.members:
        comparison = member.primary.against[BASE]
        rows.append([*main_row(results, member), f"{comparison.p_value:.4f}", against(comparison, BASE)])
    stats = results.statistics
    legend = f"{caption(results)}. " if caption(results) else ""
    return (
        f"{_table([*headings(results), 'p', 'adapter vs base'], rows)}\n\n"
        f"{legend}Intervals hold {100 * stats.confidence:.0f} % of {stats.num_resamples} bootstrap resamples of "
        f"the examples (the exact binomial interval at 0 and 1); p is that of a paired permutation test "
        f"({stats.num_permutations} permutations). An adapter *beats* the base only if its lift's interval lies above "
        f"0 and p is below {stats.max_p_value}.\n\n![Scores by task](scores.svg)"
    )


def _claims_section(results: Results) -> str:
    lines = [f"- {_cell(claim_line(claim))}" for claim in results.claims]
    return (
        "## The fleet as a whole\n\n"
        + "\n".join(lines)
        + f"\n\nOf many tests some pass by chance. Here p-values are corrected by Holm's method for {_number(results)} "
        f"tests against each contender, so each of these counts has, with 95 % probability, no adapter by chance."
    )


def _number(results: Results) -> str:
    return str(max((len(claim.p_values) for claim in results.claims), default=0))


def _advice_section(results: Results) -> str:
    lines = [f"- {member.name}: {member.advice.sentence}" for member in results.members]
    return "## Should you tune?\n\n" + "\n".join(map(_line, lines))


def _metrics_section(results: Results) -> str:
    rows = []
    for member in results.members:
        for result in member.metrics:
            tuned = interval(result.scores[ADAPTER])
            rows.append([member.name, result.metric, ADAPTER, tuned, NONE, NONE, NONE])
            rows += [
                [member.name, result.metric, name, interval(result.scores[name]), signed_interval(comparison.lift),
                 f"{comparison.p_value:.4f}", against(comparison, name)]
                for name, comparison in result.against.items()
            ]  # fmt: skip
    header = ["adapter", "metric", "contender", "score [95 %]", "adapter's lift over it [95 %]", "p", "the adapter"]
    return (
        f"## All metrics and contenders\n\n{_table(header, rows)}\n\n"
        "Metrics that end in `_as_published` repeat the measure of the published scores, with its faults."
    )


def _published_section(results: Results) -> str:
    lines = [
        f"- {_cell(published_line(member, item))}"
        for member in results.members
        for item in member.published_comparisons
        if item.contender in MAIN_PUBLISHED
    ]
    if not lines:
        return ""
    totals = [f"- {line}" for line in published_totals(results)]
    sources = sorted({member.published.source for member in results.members if member.published})
    return (
        "## Against published scores\n\n"
        + "\n".join([*totals, "", *lines])
        + "\n\nThe published score is taken as exact and was measured on other examples with other prompts, so this "
        f"says where a figure lies and is no test between two models. Source: {_cell('; '.join(sources))}."
    )


def _forgetting_section(results: Results) -> str:
    found = results.forgetting
    if found is None:
        return ""
    rows = [
        [adapter.name, f"{adapter.bits_per_token:.3f}", signed_interval(adapter.change),
         f"{adapter.perplexity_factor:.2f}"]
        for adapter in found.adapters
    ]  # fmt: skip
    missing = "".join(f"\n- {_cell(f'{name}: {why}')}" for name, why in found.not_measured.items())
    return (
        f"## Forgetting\n\n"
        f"{_table(['adapter', 'bits a token', 'change [95 %]', 'perplexity times'], rows)}\n\n"
        f"The base answered {found.num_prompts} general prompts greedily ({found.num_tokens} tokens, "
        f"{found.base_bits_per_token:.3f} bits a token); the table says how probable these answers are under each "
        f"adapter. No change: nothing was forgotten. Prompts `{found.prompts_digest[:19]}`." + missing
    )


def _transfer_section(results: Results) -> str:
    found = results.transfer
    if found is None:
        return ""
    tasks = [task.member for task in found.tasks]
    scores = {(cell.adapter, cell.member): cell for cell in found.cells}
    adapters = dict.fromkeys(cell.adapter for cell in found.cells)
    rows = [[adapter or BASE, *(f"{scores[adapter, task].score.value:.3f}" for task in tasks)] for adapter in adapters]
    return (
        f"## Transfer\n\n{_table(['answered by', *tasks], rows)}\n\n"
        f"Every adapter on the first {found.num_examples} examples of every task, scored by the task's first metric, "
        "with the prompt of the task's own adapter. Intervals are in results.json."
    )


def _cost_section(results: Results) -> str:
    rows = [
        [total.name, total.kind, total.detail or NONE, NONE if total.cost_usd is None else f"{total.cost_usd:.4f}",
         f"{total.seconds:.0f}", str(total.num_prompt_tokens), str(total.num_new_tokens)]
        for total in total_cost(results).values()
    ]  # fmt: skip
    header = ["contender", "kind", "detail", "US dollars", "seconds", "prompt tokens", "new tokens"]
    return f"## What the answers cost\n\n{_table(header, rows)}"


def _failures_section(results: Results) -> str:
    lines = []
    for member in results.members:
        lines += [f"- {member.name}: {_cell(warning)}" for warning in warnings(member)]
        for failure in member.failures[:_MAX_FAILURES_SHOWN]:
            lines.append(f"  - {_cell(failure.contender)}, example `{failure.example_id}`: {_cell(failure.error)}")
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
        training = member.training
        cost = f"; trained in {training.seconds:.0f} s for ${training.cost_usd:.4f}" if training else ""
        lines.append(
            f"- {member.adapter_id}: `{member.adapter_digest}`, data `{member.data_digest}` "
            f"({examples_text(member)}){cost}"
        )
        lines += [f"  - {_cell(note)}" for note in member.notes]
    return (
        "## How it was made\n\n" + "\n".join(lines) + "\n\nEvery answer is in `raw/`, every figure in `results.json`."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _line(text: str) -> str:
    """`text` on one line."""
    return " ".join(text.split())


def _cell(text: str) -> str:
    """`text` on one line and without what would break a table."""
    return _line(text).replace("|", "\\|")
