"""Mixes several adapters into one: on what they compute, the products B A, never on A and B by themselves.

The sum of the A's times the sum of the B's holds every adapter's A against every other one's B, which none of them was
trained for. Sources: TIES, arXiv 2306.01708; DARE, arXiv 2311.03099; the sketch, arXiv 0909.4061. Signs are elected
before the weights count, as PEFT does it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from atoll.adapters.peft_files import CONFIG_NAME, WEIGHTS_NAME
from atoll.adapters.peft_io import PREFIX, AdapterWeights
from atoll.errors import RequestInvalid
from atoll.files import write_atomic
from atoll.kernels.lora import LoraWeights

Strategy = Literal["linear", "ties", "dare_linear", "dare_ties"]
SignMethod = Literal["total", "frequency"]

MAX_SOURCES = 8
MAX_WEIGHT = 100.0
MAX_DENSE_BYTES = 2 << 30
# So many columns more than the rank, and so many rounds, bring the sketch within a percent of the best factors.
_OVERSAMPLING = 16
_NUM_ROUNDS = 2
# What is worked on at once fits into a core's cache.
_CHUNK_NUMBERS = 1 << 17
_WHERE = "merged_adapters"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How adapters are mixed. Raises RequestInvalid for numbers out of range.

    weights: one for each adapter. density: the share of each product's values that ties and dare keep, above 0 and at
    most 1; linear keeps all of them. sign_method: what ties elects the signs by, the sum of the values or their number.
    """

    weights: tuple[float, ...]
    strategy: Strategy = "linear"
    density: float = 1.0
    sign_method: SignMethod = "total"

    def __post_init__(self) -> None:
        if not 1 <= len(self.weights) <= MAX_SOURCES:
            raise _refused(f"{len(self.weights)} adapters are to be mixed", f"mix 1 to {MAX_SOURCES}")
        if not all(math.isfinite(weight) and abs(weight) <= MAX_WEIGHT for weight in self.weights):
            raise _refused("a weight is out of range", f"weights go from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}")
        if not any(self.weights):
            raise _refused("all weights are 0", "leave merged_adapters out for the bare base model")
        if self.strategy != "linear" and not 0 < self.density <= 1:
            raise _refused(f"the density is {self.density:g}", f"{self.strategy} needs a density above 0 and at most 1")


@dataclass(frozen=True)
class Merged:
    """The result. relative_error: what the factors lack of the exact mix, as a share of its norm; 0 where nothing."""

    modules: dict[str, LoraWeights]
    relative_error: float

    @property
    def max_rank(self) -> int:
        return max(lora.a.shape[0] for lora in self.modules.values())


def merge(
    sources: Sequence[AdapterWeights], recipe: Recipe, *, max_rank: int, seed: bytes, deadline_s: float = math.inf
) -> Merged:
    """Mix adapters into one of at most `max_rank`; a module that one of them lacks counts as zero there.

    seed: what dare's choice depends on. deadline_s: on time.monotonic's clock. Raises RequestInvalid for adapters of
    different bases, too large ones, a result that overflows, and when the time is up.
    """
    names = sorted({name for source in sources for name in source.modules})
    modules, lost, norm = {}, 0.0, 0.0
    for name in names:
        if time.monotonic() > deadline_s:
            raise _refused("mixing these adapters takes too long", "mix fewer or smaller ones, or use linear")
        parts = [(s.modules[name], w) for s, w in zip(sources, recipe.weights, strict=True) if name in s.modules]
        _check_shapes(name, [lora for lora, _ in parts])
        try:
            factors = _mixed(parts, recipe, max_rank, _generator(seed, name))
        # What is not finite cannot be factored.
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            raise _overflow(name) from None
        if factors is None:
            continue
        if not (factors.a.isfinite().all() and factors.b.isfinite().all()):
            raise _overflow(name)
        modules[name] = LoraWeights(factors.a, factors.b, 1.0)
        lost, norm = lost + factors.lost, norm + factors.norm
    return Merged(modules, math.sqrt(lost / norm) if norm else 0.0)


def combine(products: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Mix dense products [adapters, out, in] into [out, in]; the recipe's weights belong to just these adapters."""
    least = [_least_kept(product, recipe.density) for product in products] if recipe.strategy == "ties" else None
    num_rows = max(1, _CHUNK_NUMBERS // (len(products) * products.shape[2]))
    return torch.cat([_combine_rows(rows, recipe, least, generator) for rows in torch.split(products, num_rows, dim=1)])


def _combine_rows(rows: Tensor, recipe: Recipe, least: list[float] | None, generator: torch.Generator) -> Tensor:
    if least is not None:
        rows = torch.stack([part * (part.abs() >= limit) for part, limit in zip(rows, least, strict=True)])
    elif recipe.strategy != "linear":
        kept = torch.rand(rows.shape, generator=generator) < recipe.density
        rows = rows * kept / recipe.density
    weights = torch.tensor(recipe.weights).view(-1, 1, 1)
    if recipe.strategy in ("linear", "dare_linear"):
        return (rows * weights).sum(dim=0)
    votes = rows if recipe.sign_method == "total" else rows.sign()
    agreeing = torch.where(votes.sum(dim=0) >= 0, rows.clamp(min=0), rows.clamp(max=0))
    mean: Tensor = (agreeing * weights).sum(dim=0) / (agreeing != 0).sum(dim=0).clamp(min=1)
    return mean


@dataclass(frozen=True)
class Factors:
    """a: [rank, in]. b: [out, rank]. lost, norm: squared norms of what B A lacks, and of the whole."""

    a: Tensor
    b: Tensor
    lost: float
    norm: float


def factor(dense: Tensor, rank: int, generator: torch.Generator) -> Factors:
    """B A of at most `rank` near `dense` [out, in]: the best there is for small matrices, within a percent for others.

    Large ones are sketched: their whole decomposition would take minutes.
    """
    rank = min(rank, *dense.shape)
    num_columns = rank + _OVERSAMPLING
    if num_columns < min(dense.shape):
        basis = torch.linalg.qr(dense @ torch.randn(dense.shape[1], num_columns, generator=generator))[0]
        for _ in range(_NUM_ROUNDS):
            basis = torch.linalg.qr(dense.t() @ basis)[0]
            basis = torch.linalg.qr(dense @ basis)[0]
        left, values, right = torch.linalg.svd(basis.t() @ dense, full_matrices=False)
        left = basis @ left
    else:
        left, values, right = torch.linalg.svd(dense, full_matrices=False)
    roots = values[:rank].sqrt()
    b, a = left[:, :rank] * roots, roots.unsqueeze(1) * right[:rank]
    return Factors(a, b, lost=_square(dense - b @ a), norm=_square(dense))


def write_merged(folder: Path, merged: Merged, *, base_model: str, card: str) -> None:
    """Write the mix as PEFT would, with a model card; the scaling is part of B."""
    tensors, ranks = {}, {}
    for name, lora in merged.modules.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = lora.a.contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = lora.b.contiguous()
        ranks[re.escape(name)] = lora.a.shape[0]
    rank = merged.max_rank
    pattern = {name: number for name, number in ranks.items() if number != rank}
    fields = {
        "alpha_pattern": pattern,
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": pattern,
        "target_modules": sorted(merged.modules),
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
    }
    write_atomic(folder / WEIGHTS_NAME, save(tensors, metadata={"format": "pt"}))
    write_atomic(folder / CONFIG_NAME, json.dumps(fields, indent=2, sort_keys=True) + "\n")
    write_atomic(folder / "README.md", card)


def _mixed(
    parts: list[tuple[LoraWeights, float]], recipe: Recipe, max_rank: int, generator: torch.Generator
) -> Factors | None:
    """The mix of one module; None where nothing of it counts."""
    if not any(weight for _, weight in parts):
        return None
    if recipe.strategy == "linear":
        return _side_by_side([(lora, weight) for lora, weight in parts if weight], max_rank)
    out_features, in_features = parts[0][0].b.shape[0], parts[0][0].a.shape[1]
    if len(parts) * out_features * in_features * 4 > MAX_DENSE_BYTES:
        raise _refused(f"{recipe.strategy} would take too much memory", "mix fewer adapters, or use linear")
    products = torch.stack([(lora.b.float() @ lora.a.float()) * lora.scaling for lora, _ in parts])
    own = replace(recipe, weights=tuple(weight for _, weight in parts))
    return factor(combine(products, own, generator), _rank_of(parts, max_rank), generator)


def _side_by_side(parts: list[tuple[LoraWeights, float]], max_rank: int) -> Factors:
    """The weighted sum of products, exactly: ranks beside each other. Only what exceeds max_rank is cut."""
    a = torch.cat([lora.a.float() for lora, _ in parts])
    b = torch.cat([lora.b.float() * (lora.scaling * weight) for lora, weight in parts], dim=1)
    if a.shape[0] <= max_rank:
        return Factors(a, b, lost=0.0, norm=_square_of_product(a, b))
    left, small_b = torch.linalg.qr(b)
    right, small_a = torch.linalg.qr(a.t())
    u, values, vh = torch.linalg.svd(small_b @ small_a.t(), full_matrices=False)
    roots = values[:max_rank].sqrt()
    return Factors(
        a=roots.unsqueeze(1) * (vh[:max_rank] @ right.t()),
        b=(left @ u[:, :max_rank]) * roots,
        lost=_square(values[max_rank:]),
        norm=_square(values),
    )


def _rank_of(parts: list[tuple[LoraWeights, float]], max_rank: int) -> int:
    return min(max_rank, sum(lora.a.shape[0] for lora, _ in parts))


def _least_kept(product: Tensor, density: float) -> float:
    """The amount of the smallest value that is kept."""
    num_dropped = product.numel() - max(1, int(density * product.numel()))
    return float(np.partition(product.abs().flatten().numpy(), num_dropped)[num_dropped])


def _check_shapes(name: str, parts: Sequence[LoraWeights]) -> None:
    shapes = {(lora.b.shape[0], lora.a.shape[1]) for lora in parts}
    if len(shapes) > 1:
        raise _refused(f"the adapters differ in the shape of {name}", "mix adapters of one base model")


def _generator(seed: bytes, name: str) -> torch.Generator:
    """Each module has its own, so that its choice depends on nothing but the sources and the recipe."""
    digest = hashlib.sha256(seed + b"\n" + name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _square(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def _square_of_product(a: Tensor, b: Tensor) -> float:
    """The squared norm of B A, without the product itself."""
    return float(((a @ a.t()).double() * (b.t() @ b).double()).sum().clamp(min=0))


def _overflow(name: str) -> RequestInvalid:
    return _refused(f"the mix overflows in {name}", "use smaller weights")


def _refused(what: str, mend: str) -> RequestInvalid:
    return RequestInvalid(what, where=_WHERE, mend=mend)
