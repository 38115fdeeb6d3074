"""Norm and gate with gradients against transformers' and PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from atoll.kernels.trained import gate_mul, rms_norm

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
TOKENS = pytest.mark.parametrize("tokens", [1, 3, 40])
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float64: 1e-12}


def randn(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@DTYPES
@TOKENS
@pytest.mark.parametrize("width", [576, 30])
def test_the_norms_gradient_is_that_of_transformers(dtype: torch.dtype, tokens: int, width: int) -> None:
    norm = LlamaRMSNorm(width, eps=1e-5).to(torch.float64).requires_grad_(False)
    weight = randn(width, dtype=dtype, seed=1)
    norm.weight.data = weight.double()
    x = (randn(tokens, width, dtype=dtype, seed=2) * torch.logspace(-3, 2, tokens)[:, None].to(dtype)).requires_grad_()
    above = randn(tokens, width, dtype=dtype, seed=3)
    out = rms_norm(x, weight, 1e-5)
    (ours,) = torch.autograd.grad(out, x, above)
    exact = x.detach().double().requires_grad_()
    expected = norm(exact)
    (theirs,) = torch.autograd.grad(expected, exact, above.double())
    torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    scale = theirs.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(ours.double() / scale, theirs / scale, rtol=0, atol=TOLERANCE[dtype])


@DTYPES
@TOKENS
@pytest.mark.parametrize("width", [1536, 37])
def test_the_gates_gradients_are_pytorchs(dtype: torch.dtype, tokens: int, width: int) -> None:
    gate, up = (5 * randn(tokens, width, dtype=dtype, seed=seed) for seed in (1, 2))
    above = randn(tokens, width, dtype=dtype, seed=3)
    leaves = [gate.requires_grad_(), up.requires_grad_()]
    out = gate_mul(gate, up)
    ours = [out, *torch.autograd.grad(out, leaves, above)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = functional.silu(exact[0]) * exact[1]
    theirs = [expected, *torch.autograd.grad(expected, exact, above.double())]
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_far_gates_have_gradients_without_nan() -> None:
    gate = torch.tensor([[-1e30, -200.0, -90.0, 0.0, 90.0, 200.0]], requires_grad=True)
    up = torch.ones_like(gate)
    (ours,) = torch.autograd.grad(gate_mul(gate, up).sum(), gate)
    torch.testing.assert_close(ours, torch.tensor([[0.0, 0.0, 0.0, 0.5, 1.0, 1.0]]))


def test_rows_that_do_not_lie_side_by_side() -> None:
    wide = torch.randn(6, 60, requires_grad=True)
    (ours,) = torch.autograd.grad((rms_norm(wide[:, ::2], torch.ones(30), 1e-5) ** 3).sum(), wide)
    norm = LlamaRMSNorm(30, eps=1e-5)
    (theirs,) = torch.autograd.grad((norm(wide[:, ::2]) ** 3).sum(), wide)
    torch.testing.assert_close(ours, theirs)
