"""Runs the model over a scheduled batch; owns the KV cache, and decides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atoll.adapters.bank import AdapterBank
from atoll.adapters.linear import LinearGroup
from atoll.adapters.routing import BASE_SLOT, Routing
from atoll.engine.batch import build_batch
from atoll.engine.decode_graphs import DecodeGraphs
from atoll.engine.state import ScheduledBatch
from atoll.kernels.kv import KVCache
from atoll.kernels.warm_up import warm_up
from atoll.model.attention import PagedContext, attending
from atoll.model.load import BaseModel

# Few rows and many are computed by different kernels.
_ALL_KERNELS = (1, 64)


class StepResult(NamedTuple):
    """What one batch gave.

    logits: [n, vocab], a row for each chunk that `is_sampled`, in order. prompt_logits: [m, vocab], those before the
    `prompt_targets` of all chunks, in order. hidden_sums: by the chunk's place, for requests to `embed`: [hidden]
    float32, the sum over the chunk's tokens.
    """

    logits: Tensor
    prompt_logits: Tensor
    hidden_sums: dict[int, Tensor]


class Runner:
    """The model, its bank of adapters and the KV cache."""

    def __init__(
        self,
        base: BaseModel,
        bank: AdapterBank,
        *,
        num_blocks: int,
        block_size: int,
        max_batch_tokens: int,
        max_num_requests: int,
        max_length: int,
        cuda_graphs: bool,
    ) -> None:
        """Allocates the cache and makes kernels ready for the numbers of tokens that many steps will have."""
        self._base = base
        self._bank = bank
        self._cache = KVCache.allocate(
            base.kv_shapes, num_blocks=num_blocks, block_size=block_size, dtype=base.dtype, device=base.device
        )
        _warm_up(base, sorted({*_ALL_KERNELS, *range(1, max_num_requests + 1), max_batch_tokens}))
        self._warm_up_layers()
        self._graphs: DecodeGraphs | None = None
        if cuda_graphs and base.device.type == "cuda":
            limits = {"max_num_requests": max_num_requests, "max_length": max_length}
            self._graphs = DecodeGraphs(base, bank, self._cache, **limits)

    @torch.inference_mode()
    def run(self, batch: ScheduledBatch) -> StepResult:
        """Compute a batch and keep its keys and values."""
        step = build_batch(batch, self._cache.block_size)
        if self._graphs is not None and (found := self._graphs.run(step)) is not None:
            return StepResult(found, found[:0], {})
        context = PagedContext.of_step(self._cache, step.query_start, step.seq_lens, step.block_table, step.kv_index)
        with self._bank.routed(step.routing), attending(context), self._last_hidden(bool(step.embedded)) as hidden:
            output = self._base.model(
                input_ids=step.input_ids.to(self._base.device),
                position_ids=step.position_ids.to(self._base.device),
                logits_to_keep=step.logit_rows.to(self._base.device),
                use_cache=False,
            )
        logits: Tensor = output.logits[0]
        num_sampled = len(logits) - step.num_prompt_rows
        starts = step.query_start.tolist()
        sums = {row: hidden[0][0, starts[row] : starts[row + 1]].float().sum(0).cpu() for row in step.embedded}
        return StepResult(logits[:num_sampled], logits[num_sampled:], sums)

    @torch.inference_mode()
    def _warm_up_layers(self) -> None:
        """One token of nobody, into the first block, which whoever gets it writes anew."""
        zero = torch.zeros(1, dtype=torch.int32)
        context = PagedContext.of_step(self._cache, torch.tensor([0, 1]), zero + 1, zero[None], zero.long())
        token = torch.zeros(1, 1, dtype=torch.long, device=self._base.device)
        with self._bank.routed(Routing.from_lengths([(BASE_SLOT, 1)])), attending(context):
            self._base.model(input_ids=token, position_ids=token, logits_to_keep=1, use_cache=False)

    @contextmanager
    def _last_hidden(self, wanted: bool) -> Iterator[list[Tensor]]:
        """Holds the last layer's hidden states [1, tokens, hidden], if they are wanted, once the model has run."""
        found: list[Tensor] = []

        def note(module: Any, arguments: Any, output: Any) -> None:
            found.append(output.last_hidden_state)

        if not wanted:
            yield found
            return
        handle = self._base.model.get_decoder().register_forward_hook(note)
        try:
            yield found
        finally:
            handle.remove()


@torch.inference_mode()
def _warm_up(base: BaseModel, rows: Sequence[int]) -> None:
    """Let the kernels be compiled, or read from numba's cache, now and not during the first request."""
    warm_up(base.dtype, base.device)
    groups = {group.shape: group for group in base.model.modules() if isinstance(group, LinearGroup)}
    for group in groups.values():
        group.warm_up(base.dtype, rows)
    head = base.model.get_output_embeddings()
    for num_rows in _ALL_KERNELS:
        head(torch.zeros(1, num_rows, head.in_features, dtype=base.dtype, device=base.device))
