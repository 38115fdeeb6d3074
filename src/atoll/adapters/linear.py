"""The linear layers that answer for every adapter in a batch at once: one by one, or grouped for inference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from atoll.adapters.scope import RoutingScope
from atoll.kernels.linear import pack_modules
from atoll.kernels.lora import LoraRows, LoraTable, LoraWeights, add_lora, add_lora_group
from atoll.kernels.pages import zeros_on_demand


class MultiLoRALinear(nn.Module):
    """A frozen linear layer plus, for each row, the low-rank product of that row's adapter.

    Slabs hold the weights of all slots: `a_slab` [num_slots, max_rank, in_features] and `b_slab`
    [num_slots, max_rank, out_features], allocated when the first adapter that targets this layer arrives.
    `weights` maps an occupied slot to views of its slabs, cut to the adapter's own rank: ranks beyond it are never
    read or written.
    """

    def __init__(self, base: nn.Linear, scope: RoutingScope, layer_id: int) -> None:
        super().__init__()
        self.base = base
        self.layer_id = layer_id
        self.weights: dict[int, LoraWeights] = {}
        self.scope = scope
        self._slabs: tuple[Tensor, Tensor] | None = None
        self._tables: list[tuple[LoraTable, int]] = []

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
        active = self.scope.require()
        rows = x.reshape(-1, x.shape[-1])
        if self.weights:
            active.check_rows(len(rows))
        segments, dropout = active.routing.segments, active.dropout(self.layer_id)
        y = add_lora(rows, self.base(rows), segments, self.weights, dropout)
        return y.view(*x.shape[:-1], self.out_features)

    def publish(self, slot: int, weights: LoraWeights) -> None:
        """Let the rows of `slot` use `weights` from now on."""
        self.weights[slot] = weights
        for table, module in self._tables:
            table.set(slot, module, weights)

    def withdraw(self, slot: int) -> None:
        """Let the rows of `slot` see the bare base layer."""
        self.weights.pop(slot, None)
        for table, module in self._tables:
            table.clear(slot, module)

    def keep_current(self, table: LoraTable, module: int) -> None:
        """Enter all weights, now and in future, into a group's table as those of its `module`."""
        self._tables.append((table, module))
        for slot, weights in self.weights.items():
            table.set(slot, module, weights)

    def drop_weights(self) -> None:
        """Give back the base layer's memory; other holders of the same tensors keep theirs."""
        self.base = _DroppedLinear(self.base)

    def slot_views(self, slot: int, rank: int) -> tuple[Tensor, Tensor]:
        """The views a [rank, in_features] and b [out_features, rank] of one slot, allocating the slabs if need be."""
        if self._slabs is None:
            self._slabs = self._slab(self.in_features), self._slab(self.out_features)
        a_slab, b_slab = self._slabs
        return a_slab[slot, :rank], b_slab[slot, :rank].t()

    @torch.inference_mode(False)  # the first adapter may come while serving; training must be able to use its slab
    def _slab(self, width: int) -> Tensor:
        """Zeros [num_slots, max_rank, width]; on a CPU, what no adapter fills never takes memory."""
        shape = (self.scope.num_slots, self.scope.max_rank, width)
        return zeros_on_demand(shape, dtype=self.scope.dtype, device=self.base.weight.device)


class _DroppedLinear(nn.Linear):
    """What is left of a layer whose weights a group has packed: its shape, device and dtype."""

    def __init__(self, base: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = nn.Parameter(torch.empty(0, dtype=base.weight.dtype, device=base.weight.device), False)
        self.register_parameter("bias", None)

    def forward(self, input: Tensor) -> Tensor:
        """Always raises RuntimeError."""
        raise RuntimeError("this layer's weights were packed and given back: call its group")


class LinearGroup(nn.Module):
    """Siblings that share one input (q, k, v; gate, up; or one alone) as one product, for inference.

    layers: siblings of equal in_features, as the bank made them; their outputs stand side by side in that order.
    bits: None for the siblings' own weights (bitsandbytes modules keep theirs), 8 to quantise dense ones.
    drop_weights: give back the siblings' dense weights once they are packed; the siblings themselves then raise
    RuntimeError when called. `out_sizes`: the width of each sibling's part. `product`: of all siblings' own weights.
    `table`: their adapters.
    """

    def __init__(
        self, layers: Sequence[MultiLoRALinear], *, bits: int | None = None, drop_weights: bool = False
    ) -> None:
        super().__init__()
        self.in_features = layers[0].in_features
        self.out_sizes = tuple(layer.out_features for layer in layers)
        self.out_features = sum(self.out_sizes)
        self.product = pack_modules([layer.base for layer in layers], bits=bits)
        self._scope = layers[0].scope
        self.table = LoraTable(
            self._scope.num_slots,
            self.in_features,
            self.out_sizes,
            dtype=self._scope.dtype,
            device=layers[0].base.weight.device,
        )
        for module, layer in enumerate(layers):
            layer.keep_current(self.table, module)
            if drop_weights:
                layer.drop_weights()

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features], as many rows in all as the routing in force. Returns [..., out_features]."""
        rows = x if x.dim() == 2 else x.reshape(-1, self.in_features)
        y = self.product(rows)
        add_lora_group(rows, y, self.rows(len(rows)), self.table)
        return y if x.dim() == 2 else y.view(*x.shape[:-1], self.out_features)

    def rows(self, num_rows: int) -> LoraRows:
        """The rows of the step by slot. num_rows: of an input, which must be those of the routing in force."""
        return self._scope.require().rows(num_rows, self.table.device)

    @property
    def shape(self) -> tuple[int, int]:
        """Groups of one shape are computed by the same kernels."""
        return self.in_features, self.out_features

    def warm_up(self, dtype: torch.dtype, rows: Iterable[int]) -> None:
        """Compile what inputs of a dtype with so many rows will need, or load it from numba's cache."""
        device = self.table.device
        a, b = (torch.zeros(1, width, dtype=self.table.dtype, device=device) for width in (self.in_features, 1))
        table = LoraTable(1, self.in_features, (1,), dtype=self.table.dtype, device=device)
        table.set(0, 0, LoraWeights(a, b.t(), 1.0))
        for num_rows in rows:
            x = torch.zeros(num_rows, self.in_features, dtype=dtype, device=device)
            self.product(x)
            add_lora_group(x, x[:, :1].contiguous(), LoraRows([(0, 0, num_rows)], device), table)
