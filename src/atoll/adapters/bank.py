"""The bank: all adapters that are on the device, each in its slot, and the routing of the batch that runs now."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from atoll.adapters.linear import MultiLoRALinear
from atoll.adapters.peft_io import AdapterWeights
from atoll.adapters.routing import Routing
from atoll.adapters.scope import ActiveRouting, RoutingScope
from atoll.adapters.selection import select_modules
from atoll.config.fleet import LoraConfig
from atoll.errors import AdapterInvalid
from atoll.kernels.lora import Dropout, LoraRows, LoraWeights

StagedAdapter = Mapping[str, LoraWeights]
"""Module name -> the views of a slot that hold an adapter's weights."""


class AdapterBank:
    """Puts MultiLoRALinear in place of the base model's linear layers and owns their slots.

    num_slots: adapters on the device at once. max_rank: the largest rank that a slot can hold. dtype: of the slabs;
    the base model's own where None. The model is changed in place; rows of slot -1 see the bare base model.
    """

    def __init__(self, model: nn.Module, *, num_slots: int, max_rank: int, dtype: torch.dtype | None = None) -> None:
        self.num_slots = num_slots
        self.max_rank = max_rank
        self.dtype = dtype or next(p.dtype for p in model.parameters() if p.is_floating_point())
        self._scope = RoutingScope(num_slots, max_rank, self.dtype)
        self._allocating = threading.Lock()
        self.layers = _inject(model, self._scope)

    @contextmanager
    def routed(
        self, routing: Routing, dropouts: Mapping[int, Dropout] | None = None, rows: LoraRows | None = None
    ) -> Iterator[None]:
        """Set the routing of one batch; must enclose the forward pass and `backward()` as well.

        rows: for the layers' kernels, instead of those that the routing gives. Does not nest: a second routing inside
        the first would send rows to the wrong adapter.
        """
        if self._scope.active is not None:
            raise RuntimeError("bank.routed(...) does not nest")
        self._scope.active = ActiveRouting(routing, dropouts or {}, rows)
        try:
            yield
        finally:
            self._scope.active = None

    def load(self, slot: int, adapter: AdapterWeights) -> None:
        """Copy an adapter into a slot, replacing what was there. Raises AdapterInvalid if it does not fit the base."""
        self.commit(slot, self.stage(slot, adapter))

    def stage(self, slot: int, adapter: AdapterWeights) -> StagedAdapter:
        """Copy an adapter into a slot that no running batch routes to; rows see it once it is committed.

        Any thread may call it while others run batches. Raises AdapterInvalid if it does not fit the base.
        """
        self.check(adapter)
        staged = {}
        for name, lora in adapter.modules.items():
            a, b = self._slot_views(name, slot, lora.a.shape[0])
            a.copy_(lora.a)
            b.copy_(lora.b)
            staged[name] = LoraWeights(a, b, lora.scaling)
        return staged

    def commit(self, slot: int, staged: StagedAdapter) -> None:
        """Publish what `stage` copied into this slot; for the thread that runs the batches."""
        self.clear(slot)
        for name, lora in staged.items():
            self.layers[name].publish(slot, lora)

    def clear(self, slot: int) -> None:
        """Take the adapter out of a slot; its rows then see the bare base model."""
        for layer in self.layers.values():
            layer.withdraw(slot)

    def create(self, slot: int, config: LoraConfig, *, seed: int) -> dict[str, LoraWeights]:
        """Start a trainable adapter in a slot and return its parameters by module name.

        A is drawn as PEFT draws it (uniform within 1 / sqrt(in_features)), from a generator of this adapter's own, and
        B is zero, so that the adapter starts as the bare base model whatever else is in the bank.
        """
        generator = torch.Generator().manual_seed(seed)
        created = {}
        for name in select_modules(self.layers, config.target_modules):
            a, b = self._slot_views(name, slot, config.r)
            bound = 1 / math.sqrt(self.layers[name].in_features)
            a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
            b.zero_()
            created[name] = LoraWeights(nn.Parameter(a), nn.Parameter(b), config.scaling)
        self.commit(slot, created)
        return created

    def check(self, adapter: AdapterWeights) -> None:
        """Raise AdapterInvalid, naming the first module that does not fit this base model or this bank."""
        for name, lora in adapter.modules.items():
            layer = self.layers.get(name)
            if layer is None:
                raise AdapterInvalid(
                    f"the base model has no linear layer {name!r}",
                    where=adapter.where,
                    why="the adapter was made for another base model, or targets a layer that is not supported",
                    mend="serve the base model that its adapter_config.json names",
                )
            expected = ((lora.a.shape[0], layer.in_features), (layer.out_features, lora.a.shape[0]))
            if (tuple(lora.a.shape), tuple(lora.b.shape)) != expected:
                raise AdapterInvalid(
                    f"{name}: A {list(lora.a.shape)} and B {list(lora.b.shape)} do not fit a layer of "
                    f"{layer.in_features} inputs and {layer.out_features} outputs",
                    where=adapter.where,
                    why="the adapter was made for another base model",
                )
            if lora.a.shape[0] > self.max_rank:
                raise AdapterInvalid(
                    f"rank {lora.a.shape[0]} is above the bank's largest rank {self.max_rank}",
                    where=adapter.where,
                    mend=f"start with --max-rank {lora.a.shape[0]}",
                )

    def _slot_views(self, name: str, slot: int, rank: int) -> tuple[Tensor, Tensor]:
        with self._allocating:
            return self.layers[name].slot_views(slot, rank)


def _inject(model: nn.Module, scope: RoutingScope) -> dict[str, MultiLoRALinear]:
    """Put a MultiLoRALinear in place of every target."""
    layers = {}
    for layer_id, (name, module) in enumerate(_targets(model)):
        parent_name, _, child_name = name.rpartition(".")
        layers[name] = MultiLoRALinear(module, scope, layer_id)
        setattr(model.get_submodule(parent_name), child_name, layers[name])
    return layers


def _targets(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Every linear layer except the output head, as PEFT's "all-linear" chooses them, with its name."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head
    ]


def slot_bytes(model: nn.Module, *, max_rank: int, dtype: torch.dtype) -> int:
    """What an adapter of the largest rank on every layer would take in a slot; smaller ones take less on a CPU.

    model: without a bank yet.
    """
    return sum(layer.in_features + layer.out_features for _, layer in _targets(model)) * max_rank * dtype.itemsize


def trainable_tensors(weights: Mapping[str, LoraWeights]) -> list[Tensor]:
    """All parameters of one adapter in the order of its modules, A before B."""
    return [tensor for lora in weights.values() for tensor in (lora.a, lora.b)]
