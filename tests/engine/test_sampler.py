"""The sampler against the definitions of temperature, top_k and top_p, written out plainly here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.engine import SamplingParams
from atoll.engine.penalties import Penalties
from atoll.engine.sampler import Draw, sample, uniform

GREEDY = SamplingParams(max_new_tokens=1)


def reference_distribution(logits: list[float], *, temperature: float, top_k: int, top_p: float) -> list[float]:
    """Probabilities by the definition, in float64: temperature, then top_k, then top_p, renormalised each time."""
    best = max(logits)
    weights = [math.exp((logit - best) / temperature) for logit in logits]
    order = sorted(range(len(logits)), key=lambda token: -weights[token])
    kept = order[:top_k] if top_k else order
    total = sum(weights[token] for token in kept)
    nucleus, mass = [], 0.0
    for token in kept:
        nucleus.append(token)
        mass += weights[token] / total
        if mass >= top_p:
            break
    total = sum(weights[token] for token in nucleus)
    return [weights[token] / total if token in nucleus else 0.0 for token in range(len(logits))]


@given(
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 10, 100]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
)
@settings(max_examples=25, deadline=None)
def test_draws_follow_the_reference_distribution(seed: int, temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 2, 24).astype(np.float32))
    expected = reference_distribution(logits.tolist(), temperature=temperature, top_k=top_k, top_p=top_p)
    params = SamplingParams(max_new_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p)
    num_draws = 2000
    samples = sample(logits.expand(num_draws, -1), [Draw(params, seed, position) for position in range(num_draws)])
    counts = np.bincount([choice.token_id for choice in samples if choice], minlength=24)
    assert counts.sum() == num_draws
    assert not counts[np.array(expected) == 0].any(), "a token was drawn that top_k or top_p excludes"
    # Five standard deviations of each token's own count.
    spread = 5 * np.sqrt(num_draws * np.array(expected) * (1 - np.array(expected))) + 1e-6
    assert (np.abs(counts - num_draws * np.array(expected)) <= spread + 1).all()


def test_logprobs_are_those_of_the_raw_logits() -> None:
    """Neither temperature nor top_k changes what is reported."""
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 4
    hot = SamplingParams(max_new_tokens=1, temperature=3.0, top_k=5, logprobs=4)
    exact = logits.double().log_softmax(-1)
    for row, choice in enumerate(sample(logits, [Draw(GREEDY, 0, 0), Draw(hot, 1, 0), Draw(hot, 2, 7)])):
        assert choice is not None
        assert choice.logprob == pytest.approx(exact[row, choice.token_id].item(), abs=1e-6)
        if row:
            best = exact[row].topk(4)
            assert [token_id for token_id, _ in choice.top] == best.indices.tolist()
            assert [logprob for _, logprob in choice.top] == pytest.approx(best.values.tolist(), abs=1e-6)
        else:
            assert choice.top == ()
            assert choice.token_id == int(logits[0].argmax())


PARAMS = st.builds(
    SamplingParams,
    max_new_tokens=st.just(1),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([0.7, 1.0]),
    typical_p=st.sampled_from([0.9, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    logprobs=st.sampled_from([0, 3]),
)


def make_draw(params: SamplingParams, seed: int, position: int) -> Draw:
    penalties = Penalties(params, prompt_ids=range(seed % 9)) if params.has_penalties else None
    return Draw(params, seed, position, penalties)


@given(
    draws=st.lists(st.builds(make_draw, PARAMS, st.integers(0, 2**64 - 1), st.integers(0, 99)), min_size=1, max_size=9),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_a_row_depends_on_itself_alone(draws: list[Draw], seed: int, dtype: torch.dtype, data: st.DataObject) -> None:
    """To the bit, log-probabilities too, whatever stands beside it and wherever it stands."""
    size = data.draw(st.sampled_from([9, 100, 1031]))
    logits = (torch.randn(len(draws), size, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)
    together = sample(logits.clone(), draws)
    alone = [sample(logits[row : row + 1].clone(), [draw])[0] for row, draw in enumerate(draws)]
    assert together == alone
    order = data.draw(st.permutations(range(len(draws))))
    assert sample(logits[order], [draws[row] for row in order]) == [together[row] for row in order]


@given(params=PARAMS, seed=st.integers(0, 2**16), size=st.sampled_from([9, 100, 20_000]))
@settings(max_examples=40, deadline=None)
def test_logprobs_are_those_of_log_softmax_in_float64(params: SamplingParams, seed: int, size: int) -> None:
    logits = torch.randn(2, size, generator=torch.Generator().manual_seed(seed)) * (1 + seed % 9)
    exact = logits.double().log_softmax(-1)
    for row, choice in enumerate(sample(logits, [make_draw(params, seed, position) for position in range(2)])):
        assert choice is not None
        assert choice.logprob == pytest.approx(exact[row, choice.token_id].item(), abs=1e-5)
        best = exact[row].topk(min(params.logprobs, size))
        assert [logprob for _, logprob in choice.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_the_logits_stay_as_they_were() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    params = SamplingParams(max_new_tokens=1, repetition_penalty=2.0, logit_bias=((3, 100.0),))
    sample(logits, [make_draw(params, row + 5, 0) for row in range(3)])
    assert torch.equal(logits, before)


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(max_new_tokens=1, temperature=1.0, top_p=0.5, top_k=3)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_numbers_fails_alone(params: SamplingParams, bad: float) -> None:
    logits = torch.zeros(3, 8)
    logits[1, 5] = bad
    first, second, third = sample(logits, [Draw(params, 0, 0)] * 3)
    assert first is not None
    assert second is None
    assert third is not None
    assert sample(torch.full((1, 8), -math.inf), [Draw(params, 0, 0)]) == [None]


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e30])
def test_extreme_temperatures_are_numbers(temperature: float) -> None:
    logits = torch.tensor([[1.0, 5.0, -math.inf, 4.0]])
    params = SamplingParams(max_new_tokens=1, temperature=temperature)
    tokens = {choice.token_id for seed in range(50) if (choice := sample(logits, [Draw(params, seed, 0)])[0])}
    assert tokens == ({1} if temperature < 1 else {0, 1, 3})


def test_no_rows() -> None:
    assert sample(torch.zeros(0, 8), []) == []


def test_uniform_numbers_are_uniform_and_differ_by_seed_and_position() -> None:
    numbers = np.array([[uniform(seed, position) for position in range(100)] for seed in range(100)])
    assert len(np.unique(numbers)) == numbers.size
    assert ((numbers >= 0) & (numbers < 1)).all()
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert (np.abs(counts - 500) < 5 * np.sqrt(500)).all()
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.05
    assert uniform(2**64 - 1, 0) != uniform(2**64 - 2, 0)


def test_bfloat16_logits() -> None:
    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(2)).bfloat16()
    choice = sample(logits, [Draw(GREEDY, 0, 0)] * 2)[1]
    assert choice is not None
    assert choice.logprob == pytest.approx(logits[1].double().log_softmax(-1).max().item(), abs=1e-6)
