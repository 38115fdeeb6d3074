"""Products are computed with few different numbers of rows, and nobody sees it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll.kernels.cpu.linear import padded
from atoll.kernels.linear import pack_linear


@given(st.integers(0, 100_000))
def test_few_numbers_and_little_waste(num_rows: int) -> None:
    assert num_rows <= padded(num_rows) <= max(num_rows, num_rows * 1.25)
    assert padded(padded(num_rows)) == padded(num_rows)


def test_four_numbers_to_each_doubling() -> None:
    assert len({padded(num_rows) for num_rows in range(1, 513)}) == 32


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("num_rows", [0, 1, 9, 13, 33, 130])
def test_rows_that_are_padded_equal_those_alone(num_rows: int, bits: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(24, 32, generator=generator), torch.randn(24, generator=generator)
    x = torch.randn(num_rows, 32, generator=generator)
    layer = pack_linear(weight, bias, bits=bits)
    y = layer(x)
    assert y.shape == (num_rows, 24)
    assert y.is_contiguous()
    if num_rows:
        torch.testing.assert_close(y, torch.cat([layer(row[None]) for row in x]), rtol=1e-5, atol=1e-5)
