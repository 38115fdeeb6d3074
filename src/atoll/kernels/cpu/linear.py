"""Dense products on the CPU, packed once for oneDNN: on AMD's processors three times as fast as MKL.

A few rows are multiplied by `gemv`, from the same packed weights and with the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atoll.kernels.cpu import gemv
from atoll.kernels.cpu.values import as_numpy

# Rows that the layout is chosen for: measured, this one is among the best from one row to 512 (see docs/LOG.md).
_PACKED_FOR_ROWS = 32


class DenseLinear:
    """A linear layer of float32 or bfloat16 weights in oneDNN's own layout.

    blocks: where they lie for `gemv`, or None. offsets: [out_features] float32, the bias or zeros.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: [out_features, in_features]. bias: [out_features] or None, of the same dtype."""
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.num_bytes = weight.numel() * weight.element_size()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _PACKED_FOR_ROWS)
        self.blocks = gemv.find_blocks(self._packed, weight.detach())
        self._bias = None if bias is None else bias.detach()
        offsets = torch.zeros(self.out_features) if bias is None else bias.detach().float()
        self.offsets = as_numpy(offsets.contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        """x: [tokens, in_features]. Returns [tokens, out_features]; both of the weight's dtype."""
        if self.blocks is not None and len(x) <= gemv.FEW_ROWS:
            return gemv.multiply(x, self.blocks, self.offsets)
        return product(x, self._packed, self._bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias; weight is packed, or dense in either order of its dimensions."""
    num_rows = len(x)
    if (num_padded := padded(num_rows)) != num_rows:
        wide = x.new_empty(num_padded, x.shape[1])
        wide[:num_rows] = x
        x = wide
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y[:num_rows]


def padded(num_rows: int) -> int:
    """The next of the numbers of rows that products are computed with: four to each doubling.

    oneDNN compiles a kernel for each number of rows that it meets and keeps it, a megabyte for many rows, and every
    step of a server has another number.
    """
    step = 1 << max(0, (num_rows - 1).bit_length() - 3)
    return -(-num_rows // step) * step


def has_product(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and multiplies this dtype on this processor."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
