"""The sampler's kernels against whole sorts and sums, bit for bit, and both against float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from atoll.kernels.reference.sampling import ONE, choose, weigh
from atoll.kernels.sampling import Choice, Floats, draw, summarise

CHOICES = st.builds(
    Choice,
    temperature=st.sampled_from([0.0, 1e-30, 0.1, 0.7, 1.0, 2.5, 1e6, 1e300]),
    top_k=st.sampled_from([0, 1, 2, 7, 40, 999, 10**30]),
    top_p=st.sampled_from([1e-9, 0.1, 0.5, 0.9, 1 - 1e-16, 1.0]),
    typical_p=st.sampled_from([1e-9, 0.2, 0.95, 1.0]),
    uniform=st.floats(0, 1, exclude_max=True),
)
KINDS = ["spread", "flat", "peaked", "tied", "masked", "huge"]


def make_row(kind: str, seed: int, size: int) -> Floats:
    rng = np.random.default_rng(seed)
    row = rng.normal(0, {"flat": 1e-3, "peaked": 30.0, "huge": 1e37}.get(kind, 3.0), size)
    if kind == "tied":
        row = np.round(row)
    if kind == "masked":
        row[rng.random(size) < 0.5] = -math.inf
        row[0] = 0.0
    return row.astype(np.float32)


@given(
    rows=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 999), CHOICES), min_size=1, max_size=6),
    size=st.sampled_from([1, 2, 31, 512, 513, 3000]),
)
@settings(max_examples=150, deadline=None)
@example(rows=[("tied", 3, Choice(1.0, 3, 1.0, 1.0, 0.9999999))], size=31)
def test_draws_equal_the_reference_bit_for_bit(rows: list[tuple[str, int, Choice]], size: int) -> None:
    logits = np.stack([make_row(kind, seed, size) for kind, seed, _ in rows])
    choices = [choice for *_, choice in rows]
    assert draw(logits, choices).tolist() == [choose(row, choice) for row, choice in zip(logits, choices, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 100, 5000])
def test_log_totals_and_best_tokens_equal_float64(kind: str, size: int) -> None:
    logits = torch.from_numpy(np.stack([make_row(kind, seed, size) for seed in range(5)]))
    best, log_totals = summarise(logits)
    exact = logits.double().logsumexp(-1)
    assert torch.equal(best, logits.argmax(-1))
    torch.testing.assert_close(log_totals, exact, atol=1e-6, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_full(dtype: torch.dtype) -> None:
    logits = (torch.randn(3, 4000, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    _, log_totals = summarise(logits)
    torch.testing.assert_close(log_totals, logits.double().logsumexp(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 57, 99])
def test_a_row_that_is_not_numbers_is_marked_and_alone(bad: float, place: int) -> None:
    logits = torch.zeros(3, 100)
    logits[1, place] = bad
    log_totals = summarise(logits)[1]
    assert log_totals.isfinite().tolist() == [True, False, True]
    assert draw(logits.numpy(), [Choice(1.0, 5, 0.9, 0.9, 0.999)] * 3)[1] == 0
    assert not summarise(torch.full((1, 100), -math.inf))[1].isfinite().any()


def test_minus_zero_is_zero() -> None:
    assert summarise(torch.tensor([[-1.0, -0.0, 0.0]]))[0].tolist() == [1]


def test_weights_are_exp() -> None:
    exponents = np.linspace(-15, 0, 200_001, dtype=np.float32)
    exact = np.exp(exponents.astype(np.float64)) * ONE
    assert (np.abs(weigh(exponents) - exact) <= 1 + 1.2e-7 * exact).all()
    assert weigh(np.array([0.0, -39.0, -math.inf], np.float32)).tolist() == [ONE, 0, 0]


def typical_by_definition(logits: Floats, mass: float) -> set[int]:
    probabilities = np.exp(logits.astype(np.float64) - logits.max())
    probabilities /= probabilities.sum()
    entropy = -(probabilities * np.log(probabilities)).sum()
    away = np.abs(-np.log(probabilities) - entropy)
    kept, total = set[int](), 0.0
    for token_id in np.argsort(away).tolist():
        kept.add(token_id)
        total += probabilities[token_id]
        if total >= mass:
            break
    return kept


@pytest.mark.parametrize("mass", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_typical_p_keeps_what_its_definition_keeps(mass: float, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, 40).astype(np.float32)
    numbers: Any = np.linspace(0, 1, 4000, endpoint=False)
    drawn = draw(np.tile(logits, (4000, 1)), [Choice(1.0, 0, 1.0, mass, number) for number in numbers.tolist()])
    assert set(drawn.tolist()) == typical_by_definition(logits, mass)


def test_a_draw_is_the_inverse_of_the_cumulated_distribution() -> None:
    logits = np.log(np.array([[0.1, 0.2, 0.3, 0.4]], np.float32))
    for number, token_id in [(0.0, 0), (0.0999, 0), (0.1001, 1), (0.2999, 1), (0.3001, 2), (0.6001, 3), (0.999, 3)]:
        assert draw(logits, [Choice(1.0, 0, 1.0, 1.0, number)]).tolist() == [token_id]
