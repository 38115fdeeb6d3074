"""The linear layer that answers for every adapter in a batch at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from atoll.kernels.lora import LoraWeights, add_lora

if TYPE_CHECKING:
    from atoll.adapters.bank import RoutingScope


class MultiLoRALinear(nn.Module):
    """A frozen linear layer plus, for each row, the low-rank product of that row's adapter.

    Slabs hold the weights of all slots: `a_slab` [num_slots, max_rank, in_features] and `b_slab`
    [num_slots, out_features, max_rank], allocated when the first adapter that targets this layer arrives.
    `weights` maps an occupied slot to views of its slabs, cut to the adapter's own rank: ranks beyond it are never
    read or written.
    """

    def __init__(self, base: nn.Linear, scope: RoutingScope, layer_id: int) -> None:
        super().__init__()
        self.base = base
        self.layer_id = layer_id
        self.weights: dict[int, LoraWeights] = {}
        self._scope = scope
        self._slabs: tuple[Tensor, Tensor] | None = None

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features] with as many rows in all as the routing in force. Returns [..., out_features]."""
        y: Tensor = self.base(x)
        active = self._scope.active
        if active is None:
            raise RuntimeError("a model with adapters ran outside of bank.routed(...)")
        if not self.weights:
            return y
        rows = x.reshape(-1, x.shape[-1])
        if rows.shape[0] != active.routing.num_rows:
            raise RuntimeError(f"the batch has {rows.shape[0]} rows, its routing {active.routing.num_rows}")
        out = y.view(-1, y.shape[-1])
        return add_lora(rows, out, active.routing.segments, self.weights, active.dropout(self.layer_id)).view(y.shape)

    def slot_views(
        self, slot: int, rank: int, num_slots: int, max_rank: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """The views a [rank, in_features] and b [out_features, rank] of one slot, allocating the slabs if need be."""
        if self._slabs is None:
            device = self.base.weight.device
            self._slabs = (
                torch.zeros(num_slots, max_rank, self.in_features, dtype=dtype, device=device),
                torch.zeros(num_slots, self.out_features, max_rank, dtype=dtype, device=device),
            )
        a_slab, b_slab = self._slabs
        return a_slab[slot, :rank], b_slab[slot, :, :rank]
