"""Two answers without names: who gave which is known here alone until somebody has voted. Belongs to the event loop."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from atoll.engine import FinishEvent
from atoll.errors import NotFound, RequestInvalid
from atoll.server.caller import Caller
from atoll.server.ui.try_state import TryState
from atoll.server.ui.votes import Vote, Winner

MAX_DUELS = 32
"""Of one tenant, open at the same time."""
MAX_KEPT_CHARS = 64_000
"""Of one duel's prompt, inputs and names together."""
_LIFETIME_S = 3600.0


@dataclass
class Duel:
    """One pair of answers that somebody waits for, or judges. adapter, inputs: whose template was filled with what."""

    caller: Caller
    adapter: str
    inputs: Mapping[str, str]
    prompt: str
    contenders: tuple[str, str]
    started_s: float
    ends: dict[int, FinishEvent] = field(default_factory=dict)
    is_being_voted: bool = False


class Duels:
    """Those that nobody has voted on yet; a tenant's oldest ones are forgotten, and no other tenant's for them."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._duels: dict[str, OrderedDict[str, Duel]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._duels.values()))

    def start(self, caller: Caller, state: TryState, prompt: str) -> tuple[str, Duel]:
        """The id of a new duel, and the duel with its two contenders in random order. Raises RequestInvalid."""
        if len(state.contenders) != 2:
            raise RequestInvalid("a blind vote is between two", mend="choose two contenders")
        kept = (prompt, state.adapter, *state.contenders, *state.inputs, *state.inputs.values())
        if sum(map(len, kept)) > MAX_KEPT_CHARS:
            mend = f"shorten it to {MAX_KEPT_CHARS} characters, inputs counted too, or compare without a vote"
            raise RequestInvalid("the prompt is too long for a blind vote", mend=mend)
        self._forget_old()
        one, other = state.contenders
        order = (one, other) if secrets.randbits(1) else (other, one)
        duel_id = secrets.token_urlsafe(16)
        duel = Duel(caller, state.adapter, state.inputs, prompt, order, self._now_s())
        own = self._duels.setdefault(caller.tenant, OrderedDict())
        own[duel_id] = duel
        while len(own) > MAX_DUELS:
            own.popitem(last=False)
        return duel_id, duel

    @contextmanager
    def voting(self, duel_id: str, caller: Caller, winner: Winner) -> Iterator[tuple[Duel, Vote]]:
        """A duel that ends with the block, and its vote; where the block fails, the vote can be given again.

        Raises NotFound where there is none of this caller, RequestInvalid before both have answered.
        """
        own = self._duels.get(caller.tenant, OrderedDict())
        duel = own.get(duel_id)
        if duel is None or duel.caller != caller or duel.is_being_voted or self._is_over(duel):
            raise NotFound("there is no such pair of answers", mend="run it again")
        if len(duel.ends) < 2:
            raise RequestInvalid("not both have answered", mend="wait, or run it again")
        duel.is_being_voted = True
        try:
            yield duel, _vote(duel, winner)
        except Exception:
            duel.is_being_voted = False
            raise
        own.pop(duel_id, None)

    def _forget_old(self) -> None:
        for tenant, own in list(self._duels.items()):
            while own and self._is_over(next(iter(own.values()))):
                own.popitem(last=False)
            if not own:
                del self._duels[tenant]

    def _is_over(self, duel: Duel) -> bool:
        return self._now_s() - duel.started_s > _LIFETIME_S


def _vote(duel: Duel, winner: Winner) -> Vote:
    return Vote(
        tenant=duel.caller.tenant,
        key_id=duel.caller.key_id,
        time=round(time.time(), 3),
        adapter=duel.adapter,
        inputs=dict(duel.inputs),
        prompt=duel.prompt,
        contenders=duel.contenders,
        answers=(duel.ends[0].text, duel.ends[1].text),
        winner=winner,
    )
