"""Packed products against plain ones, and the quantised ones against bitsandbytes, which trains on them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from atoll.kernels.cpu import gemv, nf4
from atoll.kernels.cpu.int8 import Int8Linear, quantise_weight
from atoll.kernels.linear import pack_linear, pack_modules
from atoll.kernels.reference.linear import four_bit_weight, int8_linear

ROWS = (1, 2, 4, 5, 9, 33)


def linear(in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(in_features * out_features)
    return nn.Linear(in_features, out_features, bias=bias).requires_grad_(False)


def eight_bit(dense: nn.Linear) -> Any:
    """As the trainer calls it: in eval mode, where bitsandbytes multiplies integers on CPUs too."""
    import bitsandbytes

    module = bitsandbytes.nn.Linear8bitLt(
        dense.in_features, dense.out_features, dense.bias is not None, has_fp16_weights=False, threshold=0.0
    )
    module.load_state_dict(dense.state_dict())
    return module.to("cpu").eval()


def four_bit(dense: nn.Linear, *, nested: bool = True) -> Any:
    import bitsandbytes

    module = bitsandbytes.nn.Linear4bit(
        dense.in_features,
        dense.out_features,
        dense.bias is not None,
        compute_dtype=dense.weight.dtype,
        quant_type="nf4",
        compress_statistics=nested,
    )
    module.load_state_dict(dense.state_dict())
    module.support_avx512bf16_for_cpu = False
    return module.to("cpu").eval()


def expect(ours: Tensor, reference: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, reference, atol=tolerance * reference.abs().max().item(), rtol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_siblings_equal_each_alone(dtype: torch.dtype, bias: bool) -> None:
    modules = [linear(72, 40, bias=bias).to(dtype), linear(72, 25).to(dtype)]
    packed = pack_modules(modules)
    assert (packed.in_features, packed.out_features) == (72, 65)
    assert packed.num_bytes == 72 * 65 * dtype.itemsize
    for rows in ROWS:
        x = torch.randn(rows, 72).to(dtype)
        expect(packed(x), torch.cat([module(x) for module in modules], dim=1), {4: 1e-6, 2: 1e-2}[dtype.itemsize])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(72, 40), (130, 23), (5, 1)])
def test_int8_equals_the_exact_integers(shape: tuple[int, int], dtype: torch.dtype, bias: bool) -> None:
    dense = linear(*shape, bias=bias)
    packed = pack_linear(dense.weight, dense.bias, bits=8)
    for rows in ROWS:
        x = torch.randn(rows, shape[0]).to(dtype)
        expected = int8_linear(x, *quantise_weight(dense.weight), dense.bias)
        expect(packed(x).double(), expected, {4: 1e-6, 2: 1e-2}[dtype.itemsize])


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="other processors may add in another order")
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(576, 100), (1536, 64), (72, 130), (2052, 23), (130, 23)])
def test_a_row_has_the_same_bits_alone_and_among_many(
    shape: tuple[int, int], dtype: torch.dtype, bits: int | None
) -> None:
    dense = linear(*shape).to(dtype)
    packed = pack_linear(dense.weight, dense.bias, bits=bits)
    x = (torch.randn(97, shape[0]) * torch.logspace(-3, 3, 97)[:, None]).to(dtype)
    assert len(x) > gemv.FEW_ROWS
    together = packed(x)
    for rows in (1, 2, 3, 4, 5, 6, 7, 13, 16, 17, 32, 48):
        assert torch.equal(torch.cat([packed(part) for part in x.split(rows)]), together)


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="other processors may have another layout")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_blocks_of_a_packed_weight_are_found_only_where_they_are_as_expected(dtype: torch.dtype) -> None:
    weight = linear(96, 130).weight.to(dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 32)
    blocks = gemv.find_blocks(packed, weight)
    assert blocks is not None
    x = torch.randn(3, 96).to(dtype)
    expect(gemv.multiply(x, blocks, np.zeros(130, np.float32)), x @ weight.t(), {4: 1e-6, 2: 1e-2}[dtype.itemsize])
    for other in (weight + 1, weight[:65], weight.flip(1)):
        assert gemv.find_blocks(packed, other) is None


def test_int8_without_fast_integers_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, scales = quantise_weight(linear(72, 40).weight)
    x = torch.randn(17, 72)
    usual = Int8Linear(codes, scales, None)(x)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert torch.equal(Int8Linear(codes, scales, None)(x), usual)


@pytest.mark.parametrize("rows", [3, 9])
def test_int8_keeps_rows_that_are_no_numbers_to_themselves(rows: int) -> None:
    dense = linear(72, 40)
    packed = pack_linear(dense.weight, dense.bias, bits=8)
    x = torch.randn(rows, 72)
    expected = packed(x)
    x[0, 5], x[1, 7] = float("nan"), float("inf")
    x[2] = 0
    y = packed(x)
    assert not y[:2].isfinite().any()
    assert torch.equal(y[2], dense.bias)
    assert torch.equal(y[3:], expected[3:])


@pytest.mark.parametrize("bias", [True, False])
def test_int8_is_what_bitsandbytes_trains_on(bias: bool) -> None:
    dense = linear(96, 50, bias=bias)
    module = eight_bit(dense)
    before = pack_modules([module])  # its first call moves its scales
    for rows in ROWS:
        x = torch.randn(rows, 96)
        expected = module(x)
        for packed in (before, pack_modules([module]), pack_linear(dense.weight, dense.bias, bits=8)):
            # Its 1 / 127 ** 2 has four correct digits.
            expect(packed(x), expected, 5e-5)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_four_bits_are_what_bitsandbytes_trains_on(dtype: torch.dtype, bias: bool, nested: bool) -> None:
    modules = [four_bit(linear(128, out, bias=bias).to(dtype), nested=nested) for out in (40, 23)]
    packed = pack_modules(modules)
    assert isinstance(packed, nf4.FourBitLinear)
    assert packed.num_bytes == 63 * (64 + 4 * 2)
    for rows in ROWS:
        x = torch.randn(rows, 128).to(dtype)
        expected = torch.cat([module(x) for module in modules], dim=1)
        expect(packed(x), expected, {4: 1e-6, 2: 2e-2}[dtype.itemsize])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block_size", [32, 64, 96])
def test_four_bits_of_any_table_equal_the_widened_weights(block_size: int, dtype: torch.dtype) -> None:
    codes = torch.randint(0, 256, (7, 96), dtype=torch.uint8)
    scales, table, bias = torch.rand(7, 192 // block_size), torch.randn(16), torch.randn(7).to(dtype)
    packed = nf4.FourBitLinear(codes, scales, table, bias)
    weight = four_bit_weight(codes, scales, table)
    for rows in ROWS:
        x = torch.randn(rows, 192).to(dtype)
        expected = x.double() @ weight.double().t() + bias.double()
        expect(packed(x).double(), expected, {4: 1e-6, 2: 2e-2}[dtype.itemsize])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_four_bits_whose_blocks_cross_rows_are_widened(dtype: torch.dtype) -> None:
    module = four_bit(linear(72, 40).to(dtype))
    x = torch.randn(5, 72).to(dtype)
    expect(pack_modules([module])(x), module(x), {4: 1e-6, 2: 2e-2}[dtype.itemsize])


def test_what_has_no_kernel_is_called_as_it_is() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    scaled, half = Scaled(72, 40), linear(72, 40).half()
    x = torch.randn(5, 72)
    assert torch.equal(pack_modules([scaled, linear(72, 8)])(x), torch.cat([scaled(x), linear(72, 8)(x)], dim=1))
    assert torch.equal(pack_modules([half])(x.half()), half(x.half()))


def test_bfloat16_where_onednn_has_no_product_of_it() -> None:
    """As on processors without AVX-512; oneDNN reads once in a process what it may use."""
    tests = [test_packed_siblings_equal_each_alone, test_four_bits_are_what_bitsandbytes_trains_on]
    tests += [test_four_bits_of_any_table_equal_the_widened_weights, test_four_bits_whose_blocks_cross_rows_are_widened]
    names = [f"{__file__}::{test.__name__}" for test in tests]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *names],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
