"""The plot of a comparison of costs: dollars a month over requests a month, both by powers of ten."""

from __future__ import annotations

import math
from collections.abc import Sequence

import altair as alt

from atoll.config.prices import TokenPrice
from atoll.evaluation.cost import Hosting, Workload, costs_at
from atoll.evaluation.vega import to_svg

_POINTS_PER_DECADE = 60
_DECADES = 2
_COLORS = ["#2a9d8f", "#b8bec7", "#6d28d9", "#b45309", "#0369a1", "#be123c", "#4d7c0f", "#a16207"]


def cost_svg(workload: Workload, hosting: Hosting, models: Sequence[TokenPrice]) -> str:
    """A self-contained SVG, two decades of requests to both sides of the workload's, which a line marks."""
    middle = max(workload.requests_per_month, 1.0)
    steps = range(-_DECADES * _POINTS_PER_DECADE, _DECADES * _POINTS_PER_DECADE + 1)
    requests = [middle * math.pow(10, step / _POINTS_PER_DECADE) for step in steps]
    costs = costs_at(workload, hosting, models, requests)
    rows = [
        {"requests": count, "usd": usd, "offer": name}
        for name, values in costs.items()
        for count, usd in zip(requests, values, strict=True)
    ]
    scale = alt.Scale(domain=list(costs), range=[_COLORS[index % len(_COLORS)] for index in range(len(costs))])
    lines = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("requests:Q", title="requests a month", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s")),
            y=alt.Y("usd:Q", title="US dollars a month", scale=alt.Scale(type="log"), axis=alt.Axis(format=",~g")),
            color=alt.Color("offer:N", scale=scale, legend=alt.Legend(title=None)),
        )
    )
    here = (
        alt.Chart(alt.InlineData(values=[{"requests": middle}]))
        .mark_rule(strokeDash=[4, 3], color="#111827")
        .encode(x="requests:Q")
    )
    shape = f"{workload.prompt_tokens:g} prompt and {workload.new_tokens:g} new tokens a request"
    machine = f"{hosting.price.name}, ${hosting.price.usd_per_hour} an hour, {hosting.throughput.base}"
    title = alt.TitleParams(f"{workload.num_tasks} tasks, {shape}", subtitle=f"own: {machine}", anchor="start")
    plot = alt.layer(lines, here).properties(width=560, height=340, title=title)
    return to_svg(plot.configure_view(stroke=None))
