"""A scheduled batch as the tensors that the model takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atoll.adapters.routing import Routing
from atoll.engine.state import ScheduledBatch


@dataclass(frozen=True)
class BatchTensors:
    """One step's input, all on the CPU.

    input_ids, position_ids: [1, tokens] int64. logit_rows: int64, the rows whose logits are wanted: those that a token
    is sampled from, then `num_prompt_rows` that precede tokens of prompts whose log-probabilities are wanted.
    embedded: places of the chunks whose hidden states are wanted.
    query_start: [n + 1], seq_lens: [n], block_table: [n, max_blocks], kv_index: [tokens] as in
    model.attention.PagedContext.
    """

    input_ids: Tensor
    position_ids: Tensor
    logit_rows: Tensor
    num_prompt_rows: int
    embedded: tuple[int, ...]
    query_start: Tensor
    seq_lens: Tensor
    block_table: Tensor
    kv_index: Tensor
    routing: Routing


def build_batch(batch: ScheduledBatch, block_size: int) -> BatchTensors:
    """Lay the chunks of a batch side by side, in its order (by slot), as one row of tokens."""
    chunks = batch.chunks
    starts, stops, ends = np.array([(start, stop, len(state.token_ids)) for state, start, stop in chunks]).T
    lengths = stops - starts
    query_start = np.zeros(len(chunks) + 1, dtype=np.int64)
    np.cumsum(lengths, out=query_start[1:])
    rows = np.repeat(np.arange(len(chunks)), lengths)
    positions = np.arange(query_start[-1]) + (starts - query_start[:-1])[rows]
    block_table = np.zeros((len(chunks), -(-int(stops.max()) // block_size)), dtype=np.int32)
    token_ids: list[int] = []
    rows_of_slots: dict[int, int] = {}
    is_sampled = stops == ends
    prompt_rows: list[int] = []
    for row, chunk in enumerate(chunks):
        state, start, stop = chunk
        block_ids = np.frombuffer(state.block_ids, dtype=np.int32)[: block_table.shape[1]]
        block_table[row, : len(block_ids)] = block_ids
        token_ids += state.token_ids[start:stop]
        rows_of_slots[state.slot] = rows_of_slots.get(state.slot, 0) + stop - start
        if state.request.needs_whole_prompt:
            is_sampled[row] &= not state.request.embed
            prompt_rows.extend(query_start[row] + np.arange(len(chunk.prompt_targets)))
    blocks, offsets = np.divmod(positions, block_size)
    return BatchTensors(
        input_ids=torch.from_numpy(np.array(token_ids))[None],
        position_ids=torch.from_numpy(positions)[None],
        logit_rows=torch.from_numpy(
            np.concatenate([query_start[1:][is_sampled] - 1, np.array(prompt_rows, dtype=np.int64)])
        ),
        num_prompt_rows=len(prompt_rows),
        embedded=tuple(row for row, chunk in enumerate(chunks) if chunk.state.request.embed),
        query_start=torch.from_numpy(query_start.astype(np.int32)),
        seq_lens=torch.from_numpy(stops.astype(np.int32)),
        block_table=torch.from_numpy(block_table),
        kv_index=torch.from_numpy(block_table[rows, blocks] * np.int64(block_size) + offsets),
        routing=Routing.from_lengths(rows_of_slots.items()),
    )
