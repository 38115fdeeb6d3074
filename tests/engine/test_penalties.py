"""Penalties and biases against their definitions and against transformers'."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from atoll.engine import SamplingParams
from atoll.engine.penalties import Penalties
from atoll.engine.sampler import Draw, sample

SIZE = 40
IDS = st.lists(st.integers(0, SIZE - 1), max_size=60)


def by_definition(params: SamplingParams, prompt: list[int], completion: list[int], row: torch.Tensor) -> torch.Tensor:
    """transformers' repetition penalty, then OpenAI's mu - c * frequency - [c > 0] * presence, and the bias."""
    seen = torch.tensor([prompt + completion], dtype=torch.long)
    if seen.numel():
        row = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(seen, row[None].clone())[0]
    changed = row.double()
    for token_id, count in Counter(completion).items():
        changed[token_id] -= count * params.frequency_penalty + params.presence_penalty
    for token_id, bias in params.logit_bias:
        changed[token_id] += bias
    return changed


@given(
    prompt=IDS,
    completion=IDS,
    repetition=st.sampled_from([0.5, 1.0, 1.3]),
    frequency=st.sampled_from([-2.0, 0.0, 0.3]),
    presence=st.sampled_from([-0.5, 0.0, 2.0]),
    bias=st.dictionaries(st.integers(0, SIZE - 1), st.floats(-100, 100), max_size=5),
    seed=st.integers(0, 999),
)
def test_equal_their_definitions(
    prompt: list[int],
    completion: list[int],
    repetition: float,
    frequency: float,
    presence: float,
    bias: dict[int, float],
    seed: int,
) -> None:
    params = SamplingParams(
        max_new_tokens=1,
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        logit_bias=tuple(bias.items()),
    )
    row = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed)) * 3
    expected = by_definition(params, prompt, completion, row)
    penalties = Penalties(params, prompt)
    for token_id in completion:
        penalties.push(token_id)
    ours = row.numpy().copy()
    penalties.apply(ours)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-5, atol=1e-5)
    once_more = row.numpy().copy()
    penalties.apply(once_more)
    assert np.array_equal(ours, once_more), "applying must not change the penalties themselves"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bias_forbids_and_forces(temperature: float) -> None:
    logits = torch.randn(1, SIZE, generator=torch.Generator().manual_seed(1))
    best = int(logits.argmax())
    forbidding = SamplingParams(max_new_tokens=1, temperature=temperature, logit_bias=((best, -100.0),))
    forcing = SamplingParams(max_new_tokens=1, temperature=temperature, logit_bias=((7, 100.0),))
    for seed in range(200 if temperature else 1):
        (other,) = sample(logits, [Draw(forbidding, seed, 0, Penalties(forbidding, ()))])
        (forced,) = sample(logits, [Draw(forcing, seed, 0, Penalties(forcing, ()))])
        assert other is not None
        assert forced is not None
        assert other.token_id != best
        assert forced.token_id == 7
        # What is reported is the model's own, not the certainty that the bias makes of it.
        assert forced.logprob == pytest.approx(logits[0].double().log_softmax(-1)[7].item(), abs=1e-6)


@pytest.mark.parametrize("repetition", [1e-300, 1e300])
def test_an_extreme_penalty_still_leaves_something_to_draw(repetition: float) -> None:
    params = SamplingParams(max_new_tokens=1, temperature=1.0, repetition_penalty=repetition)
    (choice,) = sample(torch.linspace(-2, 2, SIZE)[None], [Draw(params, 0, 0, Penalties(params, range(SIZE)))])
    assert choice is not None


def test_masked_tokens_stay_out() -> None:
    logits = torch.zeros(1, SIZE)
    logits[0, 5:] = -torch.inf
    params = SamplingParams(max_new_tokens=1, temperature=5.0, repetition_penalty=1.5, frequency_penalty=-2.0)
    penalties = Penalties(params, range(SIZE))
    for token_id in range(SIZE):
        penalties.push(token_id)
    choices = [sample(logits, [Draw(params, seed, 0, penalties)])[0] for seed in range(100)]
    assert {choice.token_id for choice in choices if choice} == set(range(5))
