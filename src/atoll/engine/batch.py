"""A scheduled batch as the tensors that the model takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atoll.adapters.routing import Routing
from atoll.engine.scheduler import ScheduledBatch


@dataclass(frozen=True)
class BatchTensors:
    """One step's input, all on the CPU.

    input_ids, position_ids: [1, tokens] int64. sampled_rows: int64, the rows whose logits are wanted. query_start:
    [n + 1], seq_lens: [n], block_table: [n, max_blocks], kv_index: [tokens] as in model.attention.PagedContext.
    """

    input_ids: Tensor
    position_ids: Tensor
    sampled_rows: Tensor
    query_start: Tensor
    seq_lens: Tensor
    block_table: Tensor
    kv_index: Tensor
    routing: Routing


def build_batch(batch: ScheduledBatch, block_size: int) -> BatchTensors:
    """Lay the chunks of a batch side by side, in its order (by slot), as one row of tokens."""
    chunks = batch.chunks
    starts = np.array([chunk.start for chunk in chunks])
    stops = np.array([chunk.stop for chunk in chunks])
    lengths = stops - starts
    query_start = np.concatenate(([0], np.cumsum(lengths)))
    rows = np.repeat(np.arange(len(chunks)), lengths)
    positions = np.arange(query_start[-1]) - query_start[rows] + starts[rows]
    block_table = np.zeros((len(chunks), -(-int(stops.max()) // block_size)), dtype=np.int32)
    for row, chunk in enumerate(chunks):
        block_ids = chunk.state.block_ids[: block_table.shape[1]]
        block_table[row, : len(block_ids)] = block_ids
    token_ids: list[int] = []
    for chunk in chunks:
        token_ids += chunk.state.token_ids[chunk.start : chunk.stop]
    is_last = np.array([chunk.is_last for chunk in chunks])
    return BatchTensors(
        input_ids=torch.tensor([token_ids]),
        position_ids=torch.from_numpy(positions)[None],
        sampled_rows=torch.from_numpy(query_start[1:][is_last] - 1),
        query_start=torch.from_numpy(query_start.astype(np.int32)),
        seq_lens=torch.from_numpy(stops.astype(np.int32)),
        block_table=torch.from_numpy(block_table),
        kv_index=torch.from_numpy(block_table[rows, positions // block_size].astype(np.int64) * block_size)
        + torch.from_numpy(positions % block_size),
        routing=Routing.from_lengths(zip((chunk.state.slot for chunk in chunks), lengths.tolist(), strict=True)),
    )
