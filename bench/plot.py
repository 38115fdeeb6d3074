"""The plot of `growth.py`: a row for rate, step time and memory, a column for each sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import vl_convert

_ROWS = {"tokens_s": "output tokens/s", "step_ms": "time of a step, ms", "rss_mb": "resident memory, MB"}
_TITLES = {"adapters": "adapters", "ranks": "rank", "concurrency": "requests at once", "prompts": "prompt tokens"}
_COLOR = "#2a9d8f"
_WIDTH, _HEIGHT = 200, 130


def growth_svg(points: Sequence[Mapping[str, object]], machine: str) -> str:
    """A self-contained SVG. Both axes are linear and begin at 0, so that a straight line is one."""
    names = [name for name in _TITLES if any(point["sweep"] == name for point in points)]
    panels = [
        alt.hconcat(*(_panel([p for p in points if p["sweep"] == name], name, key) for name in names)) for key in _ROWS
    ]
    title = alt.TitleParams("How serving grows", subtitle=machine.splitlines(), anchor="start")
    plot = alt.vconcat(*panels).properties(title=title).configure_view(stroke=None)
    svg: str = vl_convert.vegalite_to_svg(plot.to_json())
    return svg


def _panel(points: Sequence[Mapping[str, object]], name: str, key: str) -> alt.Chart:
    x = alt.X("x:Q", title=_TITLES[name], scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5))
    y = alt.Y(f"{key}:Q", title=_ROWS[key], scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=4))
    chart = alt.Chart(alt.InlineData(values=[{"x": point["x"], key: point[key]} for point in points]))
    chart = chart.mark_line(point=alt.OverlayMarkDef(color=_COLOR), color=_COLOR).encode(x=x, y=y)
    panel: alt.Chart = chart.properties(width=_WIDTH, height=_HEIGHT)
    return panel
