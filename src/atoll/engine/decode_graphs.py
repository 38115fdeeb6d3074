"""Steps of one new token a request on CUDA, each launched as a whole.

Such a step is thousands of small kernels, and telling the device of them one by one takes longer than they do. So what
a step of a shape launches is recorded once, and repeated for every step of that shape, its inputs written where the
first one's were. A step with fewer rows than the shape's repeats its last row, which writes the same keys and values to
the same place once more. Nothing is trusted unseen: a recording has to give the logits of the kernels one by one before
it is used; where it cannot be made or gives others, this engine goes on without.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from atoll.adapters.bank import AdapterBank
from atoll.adapters.linear import LinearGroup
from atoll.adapters.routing import BASE_SLOT, Routing, Segment
from atoll.engine.batch import BatchTensors
from atoll.kernels.attention import PagedLayout
from atoll.kernels.cpu.fused import KINDS
from atoll.kernels.cuda_graph import Recorder
from atoll.kernels.kv import KVCache
from atoll.kernels.lora import LoraRows, RecordedRows
from atoll.model.attention import PagedContext, attending
from atoll.model.load import BaseModel

logger = logging.getLogger(__name__)

_ROWS_APART = 8
_SHORTEST = 1024
_LOWEST_RANK = 16
_MAX_RECORDINGS = 64
"""Each takes memory of the device beside its pool, and three steps' time to make."""
_TOLERANCE = 0.01
"""Of the largest logit: a recording may choose other kernels for a product than the same call outside of it."""


class _Shape(NamedTuple):
    """What the kernels' grids depend on: at least the step's own. max_rank: 0 where no row has an adapter."""

    num_rows: int
    max_length: int
    max_rank: int


class _Recording(NamedTuple):
    """compute: what was recorded; it keeps the tensors that the kernels were given, whose addresses a graph repeats."""

    repeat: Callable[[], None]
    compute: Callable[[], None]
    rows: RecordedRows | None


class DecodeGraphs:
    """The recordings of one engine, and the memory that all of them read and write."""

    def __init__(
        self, base: BaseModel, bank: AdapterBank, cache: KVCache, *, max_num_requests: int, max_length: int
    ) -> None:
        self._base, self._bank, self._cache = base, bank, cache
        self._tables = [module.table for module in base.model.modules() if isinstance(module, LinearGroup)]
        self._max_rows, self._max_length = _rounded_rows(max_num_requests), max_length
        device, num_blocks = base.device, -(-max_length // cache.block_size)
        self._numbers = torch.zeros(3, self._max_rows, dtype=torch.int64, device=device)  # token, position, cache place
        self._seq_lens = torch.zeros(self._max_rows, dtype=torch.int32, device=device)
        self._block_table = torch.zeros(self._max_rows, num_blocks, dtype=torch.int32, device=device)
        vocab_size: int = base.model.get_output_embeddings().out_features
        self._logits = torch.zeros(self._max_rows, vocab_size, dtype=base.dtype, device=device)
        self._recorder = Recorder(device)
        self._recordings: dict[_Shape, _Recording] = {}
        # Layers outside of groups, and those of other dtypes, read on the host which rows are whose.
        self._is_refused = not self._tables or base.dtype not in KINDS

    def run(self, step: BatchTensors) -> Tensor | None:
        """The logits [n, vocab] of the rows that a token is sampled from, until the next call; None for other steps."""
        num_rows = len(step.seq_lens)
        is_decode = num_rows == step.input_ids.shape[1] and not (step.num_prompt_rows or step.embedded)
        if self._is_refused or not is_decode or num_rows > self._max_rows:
            return None
        shape = self._shape(step)
        recording = self._recordings.get(shape)
        if recording is None and len(self._recordings) == _MAX_RECORDINGS:
            return None
        self._write(step, shape.num_rows)
        segments = _stretched(step.routing, shape.num_rows)
        if recording is None:
            if not self._record(shape, segments):
                return None
        else:
            if recording.rows is not None:
                recording.rows.place(segments)
            recording.repeat()
        return self._logits[step.logit_rows.to(self._base.device)]

    def _shape(self, step: BatchTensors) -> _Shape:
        length = _SHORTEST
        while length < int(step.seq_lens.max()):
            length *= 4
        length = min(length, self._max_length)
        max_rank = 0
        if any(segment.slot != BASE_SLOT for segment in step.routing.segments):
            largest = max(table.on_device().max_rank for table in self._tables)
            max_rank = max(_LOWEST_RANK, 1 << (largest - 1).bit_length()) if largest else 0
        return _Shape(_rounded_rows(len(step.seq_lens)), length, max_rank)

    def _write(self, step: BatchTensors, num_rows: int) -> None:
        """Put a step's inputs where the recordings read them."""
        rows = torch.arange(num_rows).clamp(max=len(step.seq_lens) - 1)
        numbers = torch.stack((step.input_ids[0], step.position_ids[0], step.kv_index))
        self._numbers[:, :num_rows].copy_(numbers[:, rows])
        self._seq_lens[:num_rows].copy_(step.seq_lens[rows])
        self._block_table[:num_rows, : step.block_table.shape[1]].copy_(step.block_table[rows])

    def _record(self, shape: _Shape, segments: list[Segment]) -> bool:
        """Record the step that was written last, and compute it by that; False where that cannot be."""
        rows = RecordedRows(shape.num_rows, shape.max_rank, self._base.device) if shape.max_rank else None
        if rows is not None:
            rows.place(segments)
        compute = self._step(shape, rows)
        try:
            repeat = self._recorder.record(compute)
            expected = self._logits[: shape.num_rows].clone()  # of the kernels one by one: recording computes nothing
            self._logits.zero_()
            repeat()
        except Exception as error:
            logger.debug("a step could not be recorded", exc_info=True)
            self._refuse(f"{type(error).__name__}: {error}")
            return False
        if not _is_close(self._logits[: shape.num_rows], expected):
            self._refuse("a recorded step gave other logits")
            return False
        logger.info("recorded a step of %d rows, length %d, rank %d", *shape)
        self._recordings[shape] = _Recording(repeat, compute, rows)
        return True

    def _step(self, shape: _Shape, rows: RecordedRows | None) -> Callable[[], None]:
        """What is recorded: from the inputs' memory to the logits'."""
        n = shape.num_rows
        token_ids, positions, kv_index = (numbers[:n] for numbers in self._numbers)
        layout = PagedLayout.of_singles(
            self._block_table[:n], self._seq_lens[:n], max_length=shape.max_length, block_size=self._cache.block_size
        )
        context, nobody = PagedContext(self._cache, layout, kv_index), Routing((Segment(BASE_SLOT, 0, n),))
        given_rows = rows or LoraRows(nobody.segments, self._base.device)  # not made anew while recording

        def compute() -> None:
            with self._bank.routed(nobody, rows=given_rows), attending(context):
                output = self._base.model(input_ids=token_ids[None], position_ids=positions[None], use_cache=False)
            self._logits[:n].copy_(output.logits[0])

        return compute

    def _refuse(self, why: str) -> None:
        self._is_refused = True
        self._recordings.clear()
        logger.warning("steps are launched kernel by kernel, which is slower: no CUDA graph of them: %s", why)


def _rounded_rows(num_rows: int) -> int:
    """Few enough numbers that recordings are few, close enough that little is computed in vain."""
    return 1 << (num_rows - 1).bit_length() if num_rows < _ROWS_APART else -(-num_rows // _ROWS_APART) * _ROWS_APART


def _stretched(routing: Routing, num_rows: int) -> list[Segment]:
    """The segments, the last one up to a recording's end."""
    *others, last = routing.segments
    return [*others, last._replace(stop=num_rows)]


def _is_close(found: Tensor, expected: Tensor) -> bool:
    numbers = expected[expected.isfinite()].float()
    scale = float(numbers.abs().max()) if len(numbers) else 0.0
    return torch.allclose(found.float(), expected.float(), rtol=0, atol=_TOLERANCE * scale, equal_nan=True)
