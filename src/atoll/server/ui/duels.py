"""Two answers without names: who gave which is known here alone until somebody has voted. Belongs to the event loop."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from atoll.engine import FinishEvent
from atoll.errors import NotFound, RequestInvalid
from atoll.server.caller import Caller
from atoll.server.ui.try_state import TryState
from atoll.server.ui.votes import Vote, Winner

_MAX_DUELS = 1024
_LIFETIME_S = 3600.0


@dataclass
class Duel:
    """One pair of answers that somebody waits for, or judges."""

    caller: Caller
    state: TryState
    prompt: str
    contenders: tuple[str, str]
    ends: dict[int, FinishEvent] = field(default_factory=dict)


class Duels:
    """Those that nobody has voted on yet; the oldest ones are forgotten."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._duels: OrderedDict[str, tuple[float, Duel]] = OrderedDict()

    def start(self, caller: Caller, state: TryState, prompt: str) -> tuple[str, Duel]:
        """The id of a new duel, and the duel with its two contenders in random order."""
        if len(state.contenders) != 2:
            raise RequestInvalid("a blind vote is between two", mend="choose two contenders")
        one, other = state.contenders
        order = (one, other) if secrets.randbits(1) else (other, one)
        duel_id = secrets.token_urlsafe(16)
        duel = Duel(caller, state, prompt, order)
        self._duels[duel_id] = self._now_s(), duel
        while len(self._duels) > _MAX_DUELS:
            self._duels.popitem(last=False)
        return duel_id, duel

    def vote(self, duel_id: str, caller: Caller, winner: Winner) -> tuple[Duel, Vote]:
        """End a duel. Raises NotFound where there is none of this caller, RequestInvalid before both have answered."""
        started_s, duel = self._duels.get(duel_id, (0.0, None))
        if duel is None or duel.caller != caller or self._now_s() - started_s > _LIFETIME_S:
            raise NotFound("there is no such pair of answers", mend="run it again")
        if len(duel.ends) < 2:
            raise RequestInvalid("not both have answered", mend="wait, or run it again")
        del self._duels[duel_id]
        vote = Vote(
            tenant=caller.tenant,
            key_id=caller.key_id,
            time=round(time.time(), 3),
            adapter=duel.state.adapter,
            inputs=dict(duel.state.inputs),
            prompt=duel.prompt,
            contenders=duel.contenders,
            answers=(duel.ends[0].text, duel.ends[1].text),
            winner=winner,
        )
        return duel, vote
