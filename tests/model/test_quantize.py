"""A quantised base computes the same whether its adapters learn, with or without checkpointing, or are served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from atoll.config.fleet import QuantizationConfig
from atoll.kernels.linear import pack_modules
from atoll.model.load import load_base


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", [4, 8])
def test_one_arithmetic_for_training_and_serving(tiny_base_folder: Path, bits: Any, dtype: Any) -> None:
    base = load_base(str(tiny_base_folder), dtype=dtype, device="cpu", quantization=QuantizationConfig(bits=bits))
    layers = [module for name, module in base.model.named_modules() if name.endswith("_proj")]
    assert len(layers) == 14
    tolerance = 1e-4 if dtype == "float32" else 2e-2
    for layer in layers:
        x = torch.randn(12, layer.in_features, dtype=base.dtype)
        base.model.eval()
        with torch.no_grad():
            expected = layer(x)
            served = pack_modules([layer])(x)
        base.model.train()
        trained = layer(x.requires_grad_())
        assert torch.equal(trained, expected)
        torch.testing.assert_close(served, expected, atol=tolerance * expected.abs().max().item(), rtol=0)
        assert torch.autograd.grad(trained.sum(), [x])[0].abs().sum() > 0
