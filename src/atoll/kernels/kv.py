"""The KV cache: keys and values of every layer, in blocks of equal size that a scheduler hands out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atoll.kernels.pages import zeros_on_demand


@dataclass(frozen=True)
class KVShape:
    """What one layer keeps of one token."""

    num_heads: int
    key_dim: int
    value_dim: int

    @property
    def num_values(self) -> int:
        """Numbers of one token in this layer, keys and values together."""
        return self.num_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True)
class KVCache:
    """Keys and values by flat position: block b holds positions [b * block_size, (b + 1) * block_size).

    keys[layer]: [num_blocks * block_size, num_heads, key_dim]; values[layer]: the same with value_dim.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    block_size: int

    @classmethod
    def allocate(
        cls,
        shapes: Sequence[KVShape],
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> KVCache:
        """An empty cache; `shapes` has one entry for each layer. On a CPU a block takes memory once it was used."""
        num_positions = num_blocks * block_size

        def tensors(dims: Sequence[int]) -> tuple[Tensor, ...]:
            sizes = [(num_positions, shape.num_heads, dim) for shape, dim in zip(shapes, dims, strict=True)]
            return tuple(zeros_on_demand(size, dtype=dtype, device=device) for size in sizes)

        keys = tensors([shape.key_dim for shape in shapes])
        values = tensors([shape.value_dim for shape in shapes])
        return cls(keys=keys, values=values, block_size=block_size)

    @property
    def num_blocks(self) -> int:
        """Blocks that requests can hold."""
        return self.keys[0].shape[0] // self.block_size

    @property
    def device(self) -> torch.device:
        """Where the cache lies."""
        return self.keys[0].device

    def write(self, layer: int, kv_index: Tensor, key: Tensor, value: Tensor) -> None:
        """Keep a step's new keys and values of one layer.

        kv_index: [tokens] int64 on the cache's device, flat positions, none twice. key: [tokens, num_heads, key_dim].
        value: [tokens, num_heads, value_dim].
        """
        self.keys[layer].index_copy_(0, kv_index, key)
        self.values[layer].index_copy_(0, kv_index, value)


def block_bytes(shapes: Sequence[KVShape], *, block_size: int, dtype: torch.dtype) -> int:
    """Memory of one block over all layers."""
    return block_size * sum(shape.num_values for shape in shapes) * dtype.itemsize
