"""What the scheduler notes about requests and their flows, and what it hands to the runner."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from atoll.adapters.routing import BASE_SLOT
from atoll.engine.accounts import Account, Ledger
from atoll.engine.request import Request
from atoll.errors import AtollError


@dataclass(slots=True, eq=False, kw_only=True)
class Tenant(Account):
    """One tenant; its flows share evenly what it gets."""

    flows: Ledger[Flow]


@dataclass(slots=True, eq=False, kw_only=True)
class Flow(Account):
    """The requests of one tenant for one adapter. waiting: by arrival. running: by admission."""

    tenant: Tenant
    waiting: list[RequestState] = field(default_factory=list)
    running: list[RequestState] = field(default_factory=list)


@dataclass(slots=True, eq=False, kw_only=True)
class RequestState:
    """A request on its way. The scheduler owns all of it except token_ids, to which the engine appends.

    arrival: its place in the order of submission. num_computed: tokens whose keys and values are in the cache.
    block_keys: the root key, then those of its blocks as far as somebody asked. num_cached_tokens: tokens that it found
    in the prefix cache when it was first admitted.
    """

    request: Request
    arrival: int
    flow: Flow
    token_ids: list[int]
    num_computed: int = 0
    block_ids: array[int] = field(default_factory=lambda: array("i"))
    block_keys: list[bytes] = field(default_factory=list)
    slot: int = BASE_SLOT
    is_running: bool = False
    was_admitted: bool = False
    num_overtakers: int = 0
    num_cached_tokens: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)


class Chunk(NamedTuple):
    """Tokens `start` to `stop` (exclusive) of one request, computed in this step."""

    state: RequestState
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Whether all tokens are then computed."""
        return self.stop == len(self.state.token_ids)

    @property
    def is_sampled(self) -> bool:
        """Whether the next token is then chosen."""
        return self.is_last and not self.state.request.embed

    @property
    def prompt_targets(self) -> list[int]:
        """The tokens of the prompt that follow this chunk's first tokens, where log-probabilities are wanted."""
        if self.state.request.prompt_logprobs is None:
            return []
        return self.state.token_ids[self.start + 1 : min(self.stop + 1, self.state.num_prompt_tokens)]


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """One step's work, and the requests whose adapter turned out to be unusable.

    chunks: ordered by slot, and in one slot those with one token before those with several.
    """

    chunks: Sequence[Chunk] = ()
    failures: Sequence[tuple[RequestState, AtollError]] = ()

    @property
    def num_tokens(self) -> int:
        return sum(chunk.stop - chunk.start for chunk in self.chunks)
