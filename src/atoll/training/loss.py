"""One forward pass over packed examples of several adapters, and each adapter's own loss from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from atoll.adapters.bank import AdapterBank
from atoll.adapters.routing import Routing
from atoll.kernels.lora import Dropout
from atoll.kernels.spans import Span
from atoll.model.attention import PackedContext, attending
from atoll.training.data import TokenizedExample, num_shared_tokens


@dataclass(frozen=True)
class PackedPass:
    """Examples side by side in one row, those of one slot next to each other, behind the prefix that they share.

    ids, position_ids: [1, tokens]. spans: where the prefixes and the rests of the examples lie. rows: [targets], the
    rows whose output predicts a trained token. targets: [targets], those tokens. num_targets: (slot, count) in the
    order of `rows`.
    """

    ids: Tensor
    position_ids: Tensor
    spans: tuple[Span, ...]
    routing: Routing
    rows: Tensor
    targets: Tensor
    num_targets: tuple[tuple[int, int], ...]


def pack(groups: Mapping[int, Sequence[TokenizedExample]], device: torch.device) -> PackedPass:
    """groups: slot -> its examples, none empty.

    What all prompts of a slot begin with, its instruction above all, stands in the row once: under one adapter and
    with causal attention it is the same computation in each of them, and its gradient is the sum of theirs.
    """
    ids, positions, spans = list[int](), list[int](), list[Span]()
    rows, targets, num_targets, lengths = list[int](), list[int](), [], []
    for slot, examples in sorted(groups.items()):
        first = len(ids)
        shared = num_shared_tokens(examples) if len(examples) > 1 else 0
        ids += examples[0].ids[:shared]
        positions += range(shared)
        prefix = (first, len(ids))
        if shared:
            spans.append(Span(*prefix))
        for example in examples:
            start = len(ids)
            ids += example.ids[shared:]
            positions += range(shared, len(example.ids))
            spans.append(Span(start, len(ids), *prefix))
            rows += range(start + example.num_prompt_tokens - shared - 1, len(ids) - 1)
            targets += example.ids[example.num_prompt_tokens :]
        lengths.append((slot, len(ids) - first))
        num_targets.append((slot, sum(example.num_targets for example in examples)))
    return PackedPass(
        ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        spans=tuple(spans),
        routing=Routing.from_lengths(lengths),
        rows=torch.tensor(rows, device=device),
        targets=torch.tensor(targets, device=device),
        num_targets=tuple(num_targets),
    )


def train_pass(
    model: Any,
    bank: AdapterBank,
    packed: PackedPass,
    denominators: Mapping[int, int],
    dropouts: Mapping[int, Dropout] | None = None,
) -> dict[int, float]:
    """Run forward and backward; gradients are added to each adapter's parameters.

    denominators: slot -> trained tokens of that adapter's whole optimiser step. Dividing by them keeps the gradients
    of the adapters exactly independent, and a step the same however it is spread over passes. Returns slot -> summed
    token loss of this pass in nats.
    """
    with bank.routed(packed.routing, dropouts), attending(PackedContext(packed.spans)):
        losses = _token_losses(model, packed)
        parts = torch.split(losses, [count for _, count in packed.num_targets])
        scaled = [part.sum() / denominators[slot] for part, (slot, _) in zip(parts, packed.num_targets, strict=True)]
        torch.stack(scaled).sum().backward()  # type: ignore[no-untyped-call]
    return _sums(parts, packed)


@torch.no_grad()
def validation_pass(model: Any, bank: AdapterBank, packed: PackedPass) -> dict[int, float]:
    """Slot -> summed token loss in nats, without gradients."""
    with bank.routed(packed.routing), attending(PackedContext(packed.spans)):
        losses = _token_losses(model, packed)
    return _sums(torch.split(losses, [count for _, count in packed.num_targets]), packed)


def _token_losses(model: Any, packed: PackedPass) -> Tensor:
    """[targets] float32. The output head runs on the rows that predict a trained token and on no others."""
    logits = model(
        input_ids=packed.ids, position_ids=packed.position_ids, use_cache=False, logits_to_keep=packed.rows
    ).logits[0]
    return functional.cross_entropy(logits.float(), packed.targets, reduction="none")


def _sums(parts: Sequence[Tensor], packed: PackedPass) -> dict[int, float]:
    return {slot: float(part.detach().sum()) for part, (slot, _) in zip(parts, packed.num_targets, strict=True)}
