"""Parameters out of range are refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from atoll.engine import SamplingParams
from atoll.errors import RequestInvalid


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -5),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -1),
        ("seed", -1),
        ("seed", 2**64),
        ("stop", ("end", "")),
        ("stop", ("x" * 257,)),
        ("stop", ("x",) * 33),
        ("logprobs", 21),
        ("logprobs", -1),
    ],
)
def test_out_of_range(name: str, value: Any) -> None:
    fields: dict[str, Any] = {"max_new_tokens": 1} | {name: value}
    with pytest.raises(RequestInvalid) as caught:
        SamplingParams(**fields)
    assert caught.value.where == name
    assert caught.value.mend
    assert name in caught.value.mend


def test_the_ends_of_every_range_are_allowed() -> None:
    SamplingParams(max_new_tokens=1, temperature=1e-9, top_p=1.0, top_k=0, seed=2**64 - 1, stop=("x" * 256,))
    SamplingParams(max_new_tokens=1, temperature=1e9, top_p=1e-9, top_k=10**9, seed=0, logprobs=20)
