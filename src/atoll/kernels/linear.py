"""Products with frozen weights, packed once for the machine that computes them; for inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class PackedLinear(Protocol):
    """A frozen linear layer. num_bytes: what its weights take."""

    in_features: int
    out_features: int
    num_bytes: int

    def __call__(self, x: Tensor) -> Tensor:
        """x: [tokens, in_features]. Returns [tokens, out_features] in the dtype of x."""
        ...


class _Modules:
    """The modules themselves, side by side: on CUDA, and where there is no kernel for their kind or dtype."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self._modules = tuple(modules)
        self.in_features: int = modules[0].in_features
        self.out_features: int = sum(module.out_features for module in modules)
        self.num_bytes: int = sum(module.weight.numel() * module.weight.element_size() for module in modules)

    def __call__(self, x: Tensor) -> Tensor:
        parts = [module(x) for module in self._modules]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def pack_linear(weight: Tensor, bias: Tensor | None, *, bits: int | None = None) -> PackedLinear:
    """Pack a dense weight, as it is or (bits 8) quantised with a scale for each output channel and each row of input.

    weight: [out_features, in_features], bias: [out_features]; on the CPU, float32 or bfloat16.
    """
    if bits == 8:
        from atoll.kernels.cpu.int8 import Int8Linear, quantise_weight

        return Int8Linear(*quantise_weight(weight.detach()), bias)
    from atoll.kernels.cpu.linear import DenseLinear

    return DenseLinear(weight, bias)


def pack_modules(modules: Sequence[Any], *, bits: int | None = None) -> PackedLinear:
    """Siblings with one input as one product, their outputs side by side.

    modules: nn.Linear, bitsandbytes' Linear8bitLt or Linear4bit, which keep their codes. bits 8 quantises dense ones.
    Other kinds, and modules on CUDA, are called as they are; dense weights may be freed afterwards, those may not.
    """
    kinds = {type(module).__name__ for module in modules}
    if len(kinds) > 1 or any(module.weight.device.type != "cpu" for module in modules):
        return _Modules(modules)
    match kinds.pop():
        case "Linear" if _has_product(modules[0].weight.dtype):
            return pack_linear(_cat([module.weight for module in modules]), _cat_bias(modules), bits=bits)
        case "Linear8bitLt":
            return _pack_int8(modules)
        case "Linear4bit" if not any(_is_repacked(module) for module in modules):
            return _pack_four_bit(modules)
    return _Modules(modules)


def _pack_int8(modules: Sequence[Any]) -> PackedLinear:
    from atoll.kernels.cpu.int8 import Int8Linear

    # The first call of a module moves these from its weight to its state.
    stats = [module.weight.SCB if module.state.SCB is None else module.state.SCB for module in modules]
    return Int8Linear(_cat([module.weight.data for module in modules]), _cat(stats) / 127, _cat_bias(modules))


def _pack_four_bit(modules: Sequence[Any]) -> PackedLinear:
    from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise

    from atoll.kernels.cpu.nf4 import FourBitLinear

    states = [module.weight.quant_state for module in modules]
    block_size = states[0].blocksize
    in_features = modules[0].in_features
    if in_features % block_size or block_size % 32:  # a block would reach from one row into the next
        if not _has_product(modules[0].compute_dtype):
            return _Modules(modules)
        dense = _cat([dequantize_4bit(module.weight.data, module.weight.quant_state) for module in modules])
        return pack_linear(dense.to(modules[0].compute_dtype), _cat_bias(modules))
    scales = [
        dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
        for state in states
    ]
    return FourBitLinear(
        _cat([module.weight.data.view(-1, in_features // 2) for module in modules]),
        _cat([scale.float().view(-1, in_features // block_size) for scale in scales]),
        states[0].code,
        _cat_bias(modules),
    )


def _has_product(dtype: torch.dtype) -> bool:
    from atoll.kernels.cpu.linear import has_product

    return has_product(dtype)


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].detach() if len(tensors) == 1 else torch.cat([tensor.detach() for tensor in tensors])


def _cat_bias(modules: Sequence[Any]) -> Tensor | None:
    if all(module.bias is None for module in modules):
        return None
    weight = modules[0].weight
    dtype = next(module.bias.dtype for module in modules if module.bias is not None)
    return _cat([weight.new_zeros(m.out_features, dtype=dtype) if m.bias is None else m.bias for m in modules])


def _is_repacked(module: Any) -> bool:
    """Whether bitsandbytes has brought a 4-bit weight into its own order for this processor."""
    return getattr(module.weight.quant_state, "packing_format_for_cpu", False)
