"""Charts as SVG, whatever the text in them."""

from __future__ import annotations

import json
import re
from typing import Any

import altair as alt
import vl_convert

# Control characters, non-characters and halves of pairs, on which the renderer would end the process, and marks that
# turn the direction of what follows them.
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def visible(text: str) -> str:
    """`text` with a mark for each character that could not be seen, or would change what stands around it."""
    return _INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", text)


def to_svg(chart: alt.TopLevelMixin) -> str:
    """A self-contained SVG; equal charts give equal bytes."""
    svg: str = vl_convert.vegalite_to_svg(json.dumps(_cleaned(chart.to_dict())))
    return svg


def _cleaned(spec: Any) -> Any:
    if isinstance(spec, str):
        return visible(spec)
    if isinstance(spec, dict):
        return {key: _cleaned(value) for key, value in spec.items()}
    return [_cleaned(item) for item in spec] if isinstance(spec, list) else spec
