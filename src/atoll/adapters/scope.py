"""What the bank and its layers share: the routing of the batch that runs now, and the shape of the slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from atoll.adapters.routing import Routing
from atoll.kernels.lora import Dropout, LoraRows


@dataclass
class ActiveRouting:
    """The routing in force and, while training, each slot's dropout (its seed belongs to one pass of one adapter).

    made_rows: what `rows` returns, if it exists already.
    """

    routing: Routing
    dropouts: Mapping[int, Dropout]
    made_rows: LoraRows | None = None

    def rows(self, num_rows: int, device: torch.device) -> LoraRows:
        """The rows of each slot, made once for all layers. num_rows: a layer's, which must be the routing's."""
        self.check_rows(num_rows)
        if self.made_rows is None:
            self.made_rows = LoraRows(self.routing.segments, device)
        return self.made_rows

    def check_rows(self, num_rows: int) -> None:
        """Raise RuntimeError unless a layer's input has as many rows as the routing."""
        if num_rows != self.routing.num_rows:
            raise RuntimeError(f"the batch has {num_rows} rows, its routing {self.routing.num_rows}")

    def dropout(self, layer_id: int) -> dict[int, Dropout] | None:
        """Each slot's dropout with a seed of its own for this layer."""
        if not self.dropouts:
            return None
        return {
            slot: Dropout(drop.probability, (drop.seed * 1_000_003 + layer_id) % 2**63)
            for slot, drop in self.dropouts.items()
        }


@dataclass
class RoutingScope:
    """Owned by the bank, read by its layers. dtype: of the slots' weights. active: set by `bank.routed` alone."""

    num_slots: int
    max_rank: int
    dtype: torch.dtype
    active: ActiveRouting | None = None

    def require(self) -> ActiveRouting:
        """The routing in force; RuntimeError without one."""
        if self.active is None:
            raise RuntimeError("a model with adapters ran outside of bank.routed(...)")
        return self.active
