"""The plots of report.html, each a self-contained SVG, or "" where there is nothing to show."""

from __future__ import annotations

import statistics as plain
from typing import Any, Literal

import altair as alt

from atoll.config.task import PUBLISHED_NAMES
from atoll.evaluation.outputs import ADAPTER, BASE
from atoll.evaluation.report_cells import total_cost
from atoll.evaluation.results import MemberResult, Results
from atoll.evaluation.scores import Score
from atoll.evaluation.vega import to_svg

_INK, _MUTED, _GOOD, _BAD = "#111827", "#6b7280", "#2a9d8f", "#b42318"
_VERDICTS = {"beats": _GOOD, "loses to": _BAD, "no difference shown": _MUTED}
_WIDTH, _ROW_HEIGHT = 520, 22
# Parameters of the models of the published columns, as their makers state them; GPT's are not public.
_NUM_PARAMS = {
    "phi_2": 2.78e9,
    "gemma_2b": 2.51e9,
    "llama_2_7b": 6.74e9,
    "mistral_7b": 7.24e9,  # its two descendants would stand on the same spot
}
_Rows = list[dict[str, Any]]


def plots(results: Results) -> dict[str, str]:
    """Every plot by its name, in the order of the report."""
    return {
        "lift": lift_svg(results),
        "published": published_svg(results),
        "cost": cost_svg(results),
        "size": size_svg(results),
        "forgetting": forgetting_svg(results),
        "transfer": transfer_svg(results),
    }


def lift_svg(results: Results) -> str:
    """The adapter's lift over the base on each task with its interval, the largest first."""
    rows: _Rows = []
    for member in sorted(results.members, key=lambda member: -member.primary.against[BASE].lift.value):
        comparison = member.primary.against[BASE]
        label = f"{member.name}, {member.primary.metric}"
        rows.append({"task": label, "verdict": comparison.verdict, **_bounds(comparison.lift)})
    return _intervals_svg(rows, title="lift of the adapter over the base (95 % interval)", group="verdict")


def published_svg(results: Results) -> str:
    """The adapter's score with its interval against GPT-4's published one, on the measure that is nearest to theirs."""
    rows = [
        {"task": member.name, "gpt_4": item.score, **_bounds(_score(member, item.metric))}
        for member in results.members
        for item in member.published_comparisons
        if item.contender == "gpt_4"
    ]
    if not rows:
        return ""
    unit = alt.Scale(domain=[0, 1], nice=False)
    chart = alt.Chart(_values(rows))
    x = alt.X("gpt_4:Q", title="GPT-4, published", scale=unit)
    y = alt.Y("value:Q", title="adapter", scale=unit)
    diagonal = alt.Chart(_values([{"x": 0, "y": 0}, {"x": 1, "y": 1}])).mark_line(color=_MUTED, strokeDash=[4, 4])
    layers = [
        diagonal.encode(x=alt.X("x:Q", scale=unit), y=alt.Y("y:Q", scale=unit)),
        chart.mark_rule(color=_GOOD).encode(x=x, y=alt.Y("low:Q", title="adapter"), y2="high:Q"),
        chart.mark_point(filled=True, size=50, color=_GOOD, opacity=1).encode(x=x, y=y),
        _labels(chart.transform_filter("datum.gpt_4 <= 0.8"), align="left").encode(x=x, y=y, text="task:N"),
        _labels(chart.transform_filter("datum.gpt_4 > 0.8"), align="right").encode(x=x, y=y, text="task:N"),
    ]
    return _svg(alt.layer(*layers).properties(width=420, height=420))


def cost_svg(results: Results) -> str:
    """Mean score over the tasks against what 1,000 answers cost, for contenders with a known price on all tasks."""
    answers = sum(member.num_examples for member in results.members)
    rows: _Rows = []
    for name, total in total_cost(results).items():
        if total.cost_usd and all(name in member.primary.scores for member in results.members):
            score = plain.fmean(member.primary.scores[name].value for member in results.members)
            rows.append({"contender": name, "usd": 1000 * total.cost_usd / answers, "score": score})
    if len(rows) < 2:
        return ""
    return _scatter_svg(
        rows, field="usd", title="US dollars for 1,000 answers (log scale)", labels="format(datum.value, '~g')"
    )


def size_svg(results: Results) -> str:
    """Mean score against parameters: base and adapter, and published models, over tasks that all of them have."""
    members = [member for member in results.members if member.published_comparisons]
    rows: _Rows = []
    for name, num_params in _NUM_PARAMS.items():
        found = [item.score for member in members for item in member.published_comparisons if item.contender == name]
        if members and len(found) == len(members):
            rows.append(
                {"contender": f"{PUBLISHED_NAMES[name]} (*)", "params": num_params, "score": plain.fmean(found)}
            )
    if not rows:
        return ""
    for name in (BASE, ADAPTER):
        own = [_score(member, member.published_comparisons[0].metric, name).value for member in members]
        rows.append({"contender": name, "params": results.run.base.num_params, "score": plain.fmean(own)})
    return _scatter_svg(
        rows, field="params", title="millions of parameters (log scale)", labels="format(datum.value / 1e6, ',')"
    )


def forgetting_svg(results: Results) -> str:
    """How many more bits a token the base's general answers have under each adapter."""
    found = results.forgetting
    if found is None:
        return ""
    ordered = sorted(found.adapters, key=lambda adapter: adapter.change.value)
    rows = [{"task": adapter.name, "verdict": "", **_bounds(adapter.change)} for adapter in ordered]
    return _intervals_svg(rows, title="bits a token more than under the base (95 % interval)", group=None)


def transfer_svg(results: Results) -> str:
    """Every adapter's lift over the base on every task, with the score written into each cell."""
    found = results.transfer
    if found is None:
        return ""
    rows = [
        {
            "adapter": cell.adapter or BASE,
            "task": cell.member,
            "lift": cell.lift.value if cell.lift else 0.0,
            "text": f"{cell.score.value:.2f}",
        }
        for cell in found.cells
    ]
    names = [BASE, *dict.fromkeys(cell.adapter for cell in found.cells if cell.adapter)]
    x = alt.X("task:N", sort=None, title="task", axis=alt.Axis(labelAngle=-45, orient="top", ticks=False))
    y = alt.Y("adapter:N", sort=names, title="answered by", axis=alt.Axis(ticks=False))
    scale = alt.Scale(scheme="brownbluegreen", domain=[-1, 1])
    chart = alt.Chart(_values(rows)).encode(x=x, y=y)
    cells = chart.mark_rect().encode(color=alt.Color("lift:Q", scale=scale, legend=alt.Legend(title="lift over base")))
    texts = chart.mark_text(fontSize=10, color=_INK).encode(text="text:N")
    return _svg(alt.layer(cells, texts).properties(width=alt.Step(44), height=alt.Step(_ROW_HEIGHT)))


def _intervals_svg(rows: _Rows, *, title: str, group: str | None) -> str:
    """A point with its interval for each row, and a line at 0."""
    y = alt.Y("task:N", sort=None, title=None, axis=alt.Axis(labelLimit=320, ticks=False, domain=False, grid=True))
    color: Any = alt.value(_INK)
    if group is not None:
        scale = alt.Scale(domain=list(_VERDICTS), range=list(_VERDICTS.values()))
        color = alt.Color(f"{group}:N", scale=scale, legend=alt.Legend(title=None, orient="bottom"))
    chart = alt.Chart(_values(rows)).encode(y=y, color=color)
    zero = alt.Chart(_values([{"zero": 0}])).mark_rule(color=_MUTED, strokeDash=[4, 4]).encode(x="zero:Q")
    axis = alt.Axis(tickCount=6)
    layers = [
        zero,
        chart.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title, axis=axis), x2="high:Q"),
        chart.mark_point(filled=True, size=60, opacity=1).encode(x=alt.X("value:Q", title=title, axis=axis)),
    ]
    return _svg(alt.layer(*layers).properties(width=_WIDTH, height=alt.Step(_ROW_HEIGHT)))


def _scatter_svg(rows: _Rows, *, field: str, title: str, labels: str) -> str:
    """Contenders by a positive quantity on a log scale and their mean score. labels: Vega's expression for the axis."""
    axis = alt.Axis(labelExpr=labels, labelOverlap="greedy", tickCount=5)
    chart = alt.Chart(_values(rows)).encode(
        x=alt.X(f"{field}:Q", title=title, scale=alt.Scale(type="log", padding=30), axis=axis),
        y=alt.Y("score:Q", title="mean score", scale=alt.Scale(domain=[0, 1], nice=False)),
    )
    points = chart.mark_point(filled=True, size=60, opacity=1, color=_GOOD)
    texts = _labels(chart, align="left").encode(text="contender:N")
    return _svg(alt.layer(points, texts).properties(width=_WIDTH, height=300))


def _labels(chart: alt.Chart, *, align: Literal["left", "right"]) -> alt.Chart:
    labels: alt.Chart = chart.mark_text(
        align=align, baseline="bottom", dx=6 if align == "left" else -6, fontSize=10, color=_INK
    )
    return labels


def _svg(chart: alt.LayerChart | alt.FacetChart) -> str:
    config = chart.configure_view(stroke=None).configure_axis(grid=True, gridColor="#e5e7eb")
    return to_svg(config)


def _values(rows: _Rows) -> alt.InlineData:
    return alt.InlineData(values=rows)


def _bounds(score: Score) -> dict[str, float]:
    return {"value": score.value, "low": score.low, "high": score.high}


def _score(member: MemberResult, metric: str, contender: str = ADAPTER) -> Score:
    return next(result for result in member.metrics if result.metric == metric).scores[contender]
