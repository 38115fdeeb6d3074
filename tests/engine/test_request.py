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
        ("typical_p", 0.0),
        ("typical_p", math.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("frequency_penalty", 2.1),
        ("frequency_penalty", math.nan),
        ("presence_penalty", -2.1),
        ("logit_bias", ((3, 100.5),)),
        ("logit_bias", ((3, math.nan),)),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((3, 1.0), (3, 2.0))),
        ("logit_bias", tuple((token_id, 1.0) for token_id in range(301))),
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
    SamplingParams(max_new_tokens=1, typical_p=1.0, repetition_penalty=1e-9, frequency_penalty=2, presence_penalty=-2)
    SamplingParams(max_new_tokens=1, logit_bias=tuple((token_id, -100.0) for token_id in range(300)))


@pytest.mark.parametrize(
    "fields",
    [{"repetition_penalty": 1.1}, {"frequency_penalty": -1}, {"presence_penalty": 1}, {"logit_bias": ((1, 0.5),)}],
)
def test_penalties_are_known_by_their_presence(fields: dict[str, Any]) -> None:
    assert SamplingParams(max_new_tokens=1, **fields).has_penalties
    assert not SamplingParams(max_new_tokens=1, temperature=1.0, typical_p=0.5).has_penalties
