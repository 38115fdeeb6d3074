"""The LoRA product for a batch in which every row belongs to one adapter or to none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from atoll.kernels.triton.lora import GroupTable

Segments = Sequence[tuple[int, int, int]]
"""(slot, first row, stop), covering all rows in order, each slot at most once; slot -1 is the bare base model."""


class LoraWeights(NamedTuple):
    """One adapter's matrices for one linear layer.

    a: [rank, in_features]. b: [out_features, rank]. The layer adds `scaling * x @ a.T @ b.T`.
    """

    a: Tensor
    b: Tensor
    scaling: float


class Dropout(NamedTuple):
    """Dropout on the input of one adapter's branch, a pure function of `seed` so that recomputation repeats it."""

    probability: float
    seed: int


_Group = tuple[int, int, float, Dropout | None]
"""First row, stop, scaling and dropout of the rows of one adapter."""


def add_lora(
    x: Tensor,
    y: Tensor,
    segments: Segments,
    weights: Mapping[int, LoraWeights],
    dropout: Mapping[int, Dropout] | None = None,
) -> Tensor:
    """Add each adapter's product to its own rows of `y`; rows of slots without weights stay unchanged.

    x: [tokens, in_features]. y: [tokens, out_features], the base layer's output. Returns `y` itself,
    changed in place. Weights are used in the dtype of `x`. Source: Punica's
    segmented product, arXiv 2310.18547.
    """
    if not weights:
        return y
    if not torch.is_grad_enabled():
        for slot, start, stop in segments:
            if (lora := weights.get(slot)) is not None:
                hidden = x[start:stop] @ lora.a.to(x.dtype).t()
                y[start:stop].addmm_(hidden.to(y.dtype), lora.b.to(y.dtype).t(), alpha=lora.scaling)
        return y
    groups, matrices = [], list[Tensor]()
    for slot, start, stop in segments:
        if (lora := weights.get(slot)) is not None:
            groups.append((start, stop, lora.scaling, None if dropout is None else dropout.get(slot)))
            matrices += [lora.a, lora.b]
    out: Tensor = _AddLora.apply(x, y, groups, *matrices)  # type: ignore[no-untyped-call]
    return out


class _AddLora(torch.autograd.Function):
    """All adapters of one layer in one node, which changes rows where they lie: nothing is cut up and joined again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, groups: Sequence[_Group], *matrices: Tensor) -> Tensor:
        hidden = []
        for (start, stop, scaling, dropout), a, b in zip(groups, matrices[::2], matrices[1::2], strict=True):
            hidden.append(functional.linear(drop(x[start:stop], dropout), a.to(x.dtype)))
            y[start:stop].addmm_(hidden[-1].to(y.dtype), b.to(y.dtype).t(), alpha=scaling)
        ctx.groups = groups
        ctx.save_for_backward(x, *matrices, *hidden)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, *saved = ctx.saved_tensors
        count = len(ctx.groups)
        matrices, hidden = saved[: 2 * count], saved[2 * count :]
        of_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        of_matrices = list[Tensor | None]()
        for (start, stop, scaling, dropout), a, b, inner in zip(
            ctx.groups, matrices[::2], matrices[1::2], hidden, strict=True
        ):
            rows = grad[start:stop]
            of_inner = (rows @ b.to(grad.dtype)).mul_(scaling).to(x.dtype)
            of_matrices.append((of_inner.t() @ drop(x[start:stop], dropout)).to(a.dtype))
            of_matrices.append((rows.t() @ inner.to(grad.dtype)).mul_(scaling).to(b.dtype))
            if of_x is not None:
                of_x[start:stop] = drop(of_inner @ a.to(x.dtype), dropout)
        return of_x, grad, None, *of_matrices


def drop(x: Tensor, dropout: Dropout | None) -> Tensor:
    """Zero some of x and scale the rest; the gradient of this is the same function with the same seed."""
    if dropout is None:
        return x
    generator = torch.Generator(x.device).manual_seed(dropout.seed)
    keep = torch.empty_like(x).bernoulli_(1 - dropout.probability, generator=generator)
    return x * keep / (1 - dropout.probability)


class LoraRows:
    """The rows of one step by slot, as the device's kernel takes them; made once for all layers."""

    def __init__(self, segments: Segments, device: torch.device) -> None:
        self.segments = segments
        self._slots = frozenset(slot for slot, _, _ in segments if slot >= 0)
        if device.type == "cuda":
            from atoll.kernels.triton.lora import cut_tiles

            self.tiles = cut_tiles(segments, device)
        else:
            self.array = np.array(segments, np.int64).reshape(-1, 3)

    def meet(self, table: LoraTable) -> bool:
        """Whether any row's slot has weights in a table."""
        return not table.slots.isdisjoint(self._slots)


class RecordedRows(LoraRows):
    """The rows of a step that a CUDA graph repeats: its kernels read from the same memory which slots they are of.

    max_rank: of all weights that any of the tables has by then.
    """

    def __init__(self, num_rows: int, max_rank: int, device: torch.device) -> None:
        from atoll.kernels.triton.lora import empty_tiles

        self.tiles = empty_tiles(num_rows, max_rank, device)

    def place(self, segments: Segments) -> None:
        """Let the next repetition be of other segments."""
        from atoll.kernels.triton.lora import refill

        refill(self.tiles, segments)

    def meet(self, table: LoraTable) -> bool:
        """Always: a table that is empty now may have weights at a later repetition."""
        return True


class LoraTable:
    """Where the weights of modules that share an input lie, for every slot.

    dtype: of all weights; float32 and bfloat16 have kernels. Tensors are kept alive by whoever sets them.
    """

    def __init__(
        self, num_slots: int, in_features: int, out_sizes: Sequence[int], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (num_slots, len(out_sizes))
        self.in_features = in_features
        self.out_sizes = tuple(out_sizes)
        self.dtype = dtype
        self.slots: set[int] = set()
        self.weights: list[dict[int, LoraWeights]] = [{} for _ in out_sizes]
        self.columns = np.concatenate(([0], np.cumsum(out_sizes)))
        self.addresses = np.zeros((*shape, 2), np.int64)
        self.ranks = np.zeros(shape, np.int32)
        self.scalings = np.zeros(shape, np.float32)
        self.kind = np.empty(0, np.float32 if dtype is torch.float32 else np.uint16)
        self.device = device
        self._on_device: GroupTable | None = None
        self._has_changed = True

    def set(self, slot: int, module: int, weights: LoraWeights) -> None:
        """Let the rows of `slot` use `weights`: a C-contiguous, b the transpose of a C-contiguous tensor."""
        if not (weights.a.is_contiguous() and weights.b.t().is_contiguous() and weights.a.dtype is self.dtype):
            raise ValueError("the weights do not lie as the kernels read them")
        self.weights[module][slot] = weights
        self.addresses[slot, module] = weights.a.data_ptr(), weights.b.data_ptr()
        self.ranks[slot, module] = weights.a.shape[0]
        self.scalings[slot, module] = weights.scaling
        self.slots.add(slot)
        self._has_changed = True

    def clear(self, slot: int, module: int) -> None:
        """Let the rows of `slot` leave `module` as it is."""
        if self.weights[module].pop(slot, None) is not None:
            self.ranks[slot, module] = 0
            self._has_changed = True
            if not self.ranks[slot].any():
                self.slots.remove(slot)

    def on_device(self) -> GroupTable:
        """The table as CUDA's kernel reads it, copied to the same memory after each change."""
        if self._on_device is None or self._has_changed:
            self._on_device, self._has_changed = self._copied(self._on_device), False
        return self._on_device

    def _copied(self, before: GroupTable | None) -> GroupTable:
        from atoll.kernels.triton.lora import GroupTable

        arrays = self.addresses, self.ranks, self.scalings, self.columns.astype(np.int32)
        tensors = [torch.from_numpy(array) for array in arrays]
        if before is None:
            with torch.inference_mode(False):  # written anew by whoever comes next, in inference mode or not
                places = [torch.empty_like(tensor, device=self.device) for tensor in tensors]
        else:
            places = [before.addresses, before.ranks, before.scalings, before.columns]
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
        addresses, ranks, scalings, columns = places
        return GroupTable(addresses, ranks, scalings, columns, self.dtype, int(self.ranks.max()), max(self.out_sizes))


def add_lora_group(x: Tensor, y: Tensor, rows: LoraRows, table: LoraTable) -> None:
    """Add the LoRA products of all modules of a group to `y`, in place; for inference.

    x: [tokens, in_features]. y: [tokens, out_features], C-contiguous, the modules' columns side by side. Sums are taken
    in float32. Costs nothing where no row's slot has weights here. How many neighbours of the same slot a row has may
    change the order of its sums, and so their rounding, and nothing else.
    """
    if not rows.meet(table):
        return
    if x.dtype not in (torch.float32, torch.bfloat16) or table.dtype not in (torch.float32, torch.bfloat16):
        from atoll.kernels.reference import lora as reference

        reference.add_lora_group(x, y, rows.segments, table)
    elif x.device.type == "cuda":
        from atoll.kernels.triton import lora as triton

        triton.add_group(x, y, rows.tiles, table.on_device())
    else:
        from atoll.kernels.cpu import lora as cpu

        cpu.add_group(x, y, rows.array, table)
