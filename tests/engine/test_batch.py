"""The tensors of a step, against the plainest way to write them down."""

from __future__ import annotations

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.engine.batch import build_batch
from atoll.engine.fairness import FairQueue
from atoll.engine.state import Chunk, ScheduledBatch
from support.scheduling import make_request

# Slot, tokens that are computed already, tokens of the chunk, tokens that are left for later steps.
JOBS = st.lists(
    st.tuples(st.integers(-1, 3), st.integers(0, 30), st.integers(1, 20), st.integers(0, 5)), min_size=1, max_size=12
)


def make_batch(jobs: list[tuple[int, int, int, int]], block_size: int) -> ScheduledBatch:
    queue = FairQueue(num_places=32, window=100)
    chunks = []
    for index, (slot, start, length, rest) in enumerate(sorted(jobs)):
        stop = start + length
        state = queue.add(make_request(range(1000 * index, 1000 * index + stop + rest), 1))
        state.slot = slot
        state.block_ids = array("i", [100 * index + block for block in range(-(-(stop + rest) // block_size))])
        chunks.append(Chunk(state, start, stop))
    return ScheduledBatch(chunks)


@given(jobs=JOBS, block_size=st.integers(1, 16))
@settings(max_examples=50, deadline=None)
def test_equals_one_token_after_the_other(jobs: list[tuple[int, int, int, int]], block_size: int) -> None:
    batch = make_batch(jobs, block_size)
    step = build_batch(batch, block_size)
    tokens = [(chunk, position) for chunk in batch.chunks for position in range(chunk.start, chunk.stop)]
    assert step.input_ids.tolist() == [[chunk.state.token_ids[position] for chunk, position in tokens]]
    assert step.position_ids.tolist() == [[position for _, position in tokens]]
    assert step.kv_index.tolist() == [
        chunk.state.block_ids[position // block_size] * block_size + position % block_size for chunk, position in tokens
    ]
    last = [row for row, (chunk, position) in enumerate(tokens) if position == len(chunk.state.token_ids) - 1]
    assert step.logit_rows.tolist() == last
    assert step.seq_lens.tolist() == [chunk.stop for chunk in batch.chunks]
    lengths = [chunk.stop - chunk.start for chunk in batch.chunks]
    assert step.query_start.tolist() == [sum(lengths[:index]) for index in range(len(lengths) + 1)]
    for row, chunk in enumerate(batch.chunks):
        num_blocks = -(-chunk.stop // block_size)
        assert step.block_table[row, :num_blocks].tolist() == list(chunk.state.block_ids[:num_blocks])
    of_rows = [segment.slot for segment in step.routing.segments for _ in range(segment.stop - segment.start)]
    assert of_rows == [chunk.state.slot for chunk, _ in tokens]
