"""The plot of an evaluation: base and adapter with their intervals, the other contenders and published scores."""

from __future__ import annotations

import itertools

import altair as alt

from atoll.evaluation.outputs import ADAPTER, BASE
from atoll.evaluation.results import MemberResult, Results
from atoll.evaluation.vega import to_svg

_BASE, _ADAPTER = "base model", "adapter"
_MISTRAL, _GPT_4 = "published: Mistral-7B, tuned", "published: GPT-4"
_COLORS = {_BASE: "#b8bec7", _ADAPTER: "#2a9d8f", _MISTRAL: "#b45309", _GPT_4: "#6d28d9"}
_OTHERS = ("#0369a1", "#be185d", "#4d7c0f", "#a16207", "#7c3aed", "#334155")  # of live contenders, in their order
_ROW_HEIGHT = 46


def scores_svg(results: Results) -> str:
    """A self-contained SVG. The axis begins at 0, or below it where a score does, so that lengths can be compared."""
    scores = [row for member in results.members for row in _score_rows(member)]
    marks = [row for member in results.members for row in (*_other_rows(member), *_published_rows(member))]
    lowest = min(0.0, *(row["low"] for row in scores))
    x = alt.X("value:Q", title="score", scale=alt.Scale(domain=[lowest, 1], nice=False))
    y = alt.Y("task:N", title=None, sort=None, axis=alt.Axis(labelLimit=320, ticks=False, domain=False))
    others = dict(zip(results.contenders[1:-1], itertools.cycle(_OTHERS), strict=False))
    colors = _COLORS | others
    shown = [contender for contender in colors if any(row["contender"] == contender for row in scores + marks)]
    scale = alt.Scale(domain=shown, range=[colors[contender] for contender in shown])
    color = alt.Color("contender:N", scale=scale, legend=alt.Legend(title=None, symbolType="square"))
    chart = alt.Chart(alt.InlineData(values=scores)).encode(y=y, yOffset=alt.YOffset("contender:N", sort=shown))
    bars = chart.mark_bar(size=14).encode(x=x, color=color)
    intervals = chart.mark_rule(strokeWidth=1.5, color="#111827").encode(x=alt.X("low:Q", title="score"), x2="high:Q")
    layers: list[alt.Chart] = [bars, intervals]
    if marks:
        ticks = alt.Chart(alt.InlineData(values=marks)).encode(x=x, y=y, color=color)
        layers.append(ticks.mark_tick(thickness=2.5, size=_ROW_HEIGHT - 8, orient="vertical"))
    title = alt.TitleParams(
        f"{results.run.fleet}: adapters against {results.run.base.name}",
        subtitle="test examples, greedy decoding; lines are 95 % bootstrap intervals",
        anchor="start",
    )
    plot = alt.layer(*layers).properties(width=520, height=alt.Step(_ROW_HEIGHT / 2), title=title)
    plot = plot.configure_legend(orient="bottom", title=None, labelLimit=240).configure_view(stroke=None)
    return to_svg(plot)


def _label(member: MemberResult) -> str:
    task = "" if member.task == member.name else f" ({member.task})"
    return f"{member.name}{task}, {member.primary.metric}"


def _score_rows(member: MemberResult) -> list[dict[str, float | str]]:
    return [
        {"task": _label(member), "contender": title, **member.primary.scores[name].model_dump()}
        for name, title in ((BASE, _BASE), (ADAPTER, _ADAPTER))
    ]


def _other_rows(member: MemberResult) -> list[dict[str, float | str]]:
    return [
        {"task": _label(member), "contender": name, "value": score.value}
        for name, score in member.primary.scores.items()
        if name not in (BASE, ADAPTER)
    ]


def _published_rows(member: MemberResult) -> list[dict[str, float | str]]:
    """Only scores of the metric that the bars show."""
    published = member.published
    if published is None or published.metric != member.primary.metric:
        return []
    known = ((_MISTRAL, published.mistral_7b), (_GPT_4, published.gpt_4))
    return [{"task": _label(member), "contender": title, "value": value} for title, value in known if value is not None]
