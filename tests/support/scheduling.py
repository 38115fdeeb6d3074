"""The scheduler without a model: slots whose loading a test commands, and keys and values that know what they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from atoll.adapters.store import StoredAdapter
from atoll.engine.blocks import BlockPool
from atoll.engine.request import Request, SamplingParams
from atoll.engine.scheduler import Scheduler
from atoll.engine.state import RequestState, ScheduledBatch
from atoll.errors import AdapterInvalid

BROKEN = "broken"
NUM_TOKENS = 3
"""So few that prompts and completions often begin alike."""


def make_adapter(name: str) -> StoredAdapter:
    """An adapter of which only its name matters."""
    return StoredAdapter(name=name, revision=1, digest=name, folder=Path(), contract=None)


def make_request(
    prompt: int | Iterable[int], max_new_tokens: int, adapter: str | None = None, tenant: str = ""
) -> Request:
    """A request; `prompt` may be the number of its tokens."""
    return Request(
        prompt_ids=tuple(range(prompt)) if isinstance(prompt, int) else tuple(prompt),
        sampling=SamplingParams(max_new_tokens=max_new_tokens),
        adapter=make_adapter(adapter) if adapter else None,
        tenant=tenant,
    )


class ScriptedSlots:
    """Slots whose loading the test commands: an adapter is ready once `finish_loading` was called for it."""

    def __init__(self, num_slots: int, *, is_instant: bool = False) -> None:
        self.num_slots = num_slots
        self.is_instant = is_instant
        self.pinned: frozenset[str] = frozenset()
        self.num_prefetches = 0
        self.wanted: set[str] = set()
        self.ready: set[str] = set()
        self.slots: dict[str, int] = {}
        self.pins: dict[str, int] = {}

    def prefetch(self, adapter: StoredAdapter) -> None:
        self.num_prefetches += 1

    def acquire(self, adapter: StoredAdapter) -> int | None:
        digest = adapter.digest
        if digest == BROKEN:
            raise AdapterInvalid("broken")
        if digest not in self.slots:
            self.wanted.add(digest)
            if not (self.is_instant or digest in self.ready) or not self._make_room():
                return None
            free = set(range(self.num_slots)) - set(self.slots.values())
            self.slots[digest] = min(free)
            self.pins[digest] = 0
            self.wanted.discard(digest)
            self.ready.discard(digest)
        self.pins[digest] += 1
        return self.slots[digest]

    def release(self, digest: str) -> None:
        self.pins[digest] -= 1
        assert self.pins[digest] >= 0, "released more often than acquired"

    def finish_loading(self) -> None:
        self.ready |= self.wanted

    def _make_room(self) -> bool:
        if len(self.slots) < self.num_slots:
            return True
        for digest, pins in self.pins.items():
            if pins == 0 and digest in self.slots:
                del self.slots[digest], self.pins[digest]
                return True
        return False


@dataclass
class Limits:
    num_blocks: int
    block_size: int
    num_slots: int
    max_batch_tokens: int
    max_num_requests: int
    max_overtakers: int = 4
    prefix_cache: bool = True

    def build(self, *, is_instant: bool = False) -> tuple[BlockPool, ScriptedSlots, Scheduler]:
        pool = BlockPool(self.num_blocks, self.block_size)
        slots = ScriptedSlots(self.num_slots, is_instant=is_instant)
        scheduler = Scheduler(
            pool,
            slots,
            num_slots=self.num_slots,
            max_batch_tokens=self.max_batch_tokens,
            max_num_requests=self.max_num_requests,
            max_overtakers=self.max_overtakers,
            prefix_cache=self.prefix_cache,
        )
        return pool, slots, scheduler

    @property
    def capacity(self) -> int:
        return self.num_blocks * self.block_size


Content = int
"""What keys and values at one position depend on: tenant, adapter and all tokens so far."""


def root_content(request: Request) -> Content:
    """What stands before the first token. The tenant does not change what is computed, but must never be shared."""
    return crc32(repr((request.tenant, request.adapter and request.adapter.digest)).encode())


class FakeModel:
    """A KV cache that holds contents for numbers, and a model that checks all that it reads."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._cache: list[Content | None] = [None] * (pool.num_blocks * pool.block_size)

    def run(self, batch: ScheduledBatch) -> None:
        """Write the contents of the batch's tokens, then read what each of its requests sees."""
        written: set[int] = set()
        for state, start, stop in batch.chunks:
            content = root_content(state.request)
            for position in range(stop):
                content = hash((content, state.token_ids[position]))
                place = self._place(state, position)
                if position >= start:
                    assert place not in written, "two requests write one place"
                    block_id = place // self._pool.block_size
                    assert self._pool.num_sole([block_id]), "a shared block is written"
                    assert block_id not in self._pool._key_of, "a cached block is written"
                    written.add(place)
                    self._cache[place] = content
        for state, _, stop in batch.chunks:
            content = root_content(state.request)
            for position in range(stop):
                content = hash((content, state.token_ids[position]))
                assert self._cache[self._place(state, position)] == content, "a request reads what is not its own"

    def _place(self, state: RequestState, position: int) -> int:
        block, offset = divmod(position, self._pool.block_size)
        return state.block_ids[block] * self._pool.block_size + offset


def next_token(request: Request, token_ids: Sequence[int]) -> int:
    """What a model would answer: it depends on adapter and tokens alone."""
    return hash((crc32(repr(request.adapter and request.adapter.digest).encode()), *token_ids)) % NUM_TOKENS


def expected_tokens(request: Request) -> list[int]:
    """The tokens of a request that is alone in the world."""
    token_ids = list(request.prompt_ids)
    for _ in range(request.sampling.max_new_tokens):
        token_ids.append(next_token(request, token_ids))
    return token_ids


def is_done(state: RequestState) -> bool:
    return len(state.token_ids) == state.num_prompt_tokens + state.request.sampling.max_new_tokens


def run_one_step(scheduler: Scheduler) -> set[int]:
    """One step; returns the arrivals of the requests that finished with it."""
    batch = scheduler.schedule()
    scheduler.advance(batch)
    finished = set()
    for chunk in batch.chunks:
        if chunk.is_last:
            chunk.state.token_ids.append(next_token(chunk.state.request, chunk.state.token_ids))
        if is_done(chunk.state):
            scheduler.remove(chunk.state)
            finished.add(chunk.state.arrival)
    return finished
