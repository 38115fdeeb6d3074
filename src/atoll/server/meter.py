"""What one request has used, and who is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from atoll.server.caller import Caller

Outcome = Literal["ok", "failed", "cancelled", "slow_reader"]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """One request that reached the engine, at its end.

    adapter: its name, empty for the bare base. A prompt counts once a token has followed it. seconds: of wall time,
    from the first step to the end; for a request that was not answered, from its first token.
    """

    caller: Caller
    adapter: str
    outcome: Outcome
    num_prompt_tokens: int
    num_cached_tokens: int
    num_new_tokens: int
    seconds: float


class Meter(Protocol):
    """Hears of every request before it starts and before the last byte of its answer leaves. Runs on the event loop."""

    def admit(self, caller: Caller, num_prompt_tokens: int) -> None:
        """A caller is about to start requests. Raises RateLimited, Unavailable."""

    def ended(self, spent: Spent) -> None:
        """A request has ended; called once for each. Never raises."""
