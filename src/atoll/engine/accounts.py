"""Even shares of the computed tokens, among parties that come and go: deficit round-robin in tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

# Accounts of absent parties are looked through only when there are many.
_MANY = 64


class Claim(IntEnum):
    """What a party may expect; smaller goes first. OWED: it got nothing for long, LIGHT: it asks for little."""

    OWED = 0
    LIGHT = 1
    HEAVY = 2


Rank = tuple[Claim, float]
"""Smaller goes first: by claim, then those who are least ahead of their share."""


@dataclass(slots=True, eq=False)
class Account:
    """What one party has asked for and got. served: tokens computed for it, on the scale of its ledger's level."""

    served: float = 0.0
    num_requests: int = 0
    num_running: int = 0


P = TypeVar("P", bound=Account)


class Ledger(Generic[P]):
    """The accounts of parties that share a machine evenly.

    Each computed token is owed in even parts to all who have requests: `level` is what somebody who was there all the
    time has been owed. A party is ahead of its share by what it was served above the level, never more than `window`
    tokens in either direction, so that nobody waits long for what others saved up, or pays long for what was idle.
    Somebody who comes back starts at the level or ahead of it, never behind: pauses save nothing up.
    """

    def __init__(self, window: int) -> None:
        self.level = 0.0
        self.num_present = 0
        self._window = window
        self._share: tuple[float, float] | None = None  # for a number of places, until somebody asks for more or less
        self._parties: dict[Hashable, P] = {}

    def __iter__(self) -> Iterator[P]:
        """Those who have requests."""
        return (party for party in self._parties.values() if party.num_requests)

    def enter(self, key: Hashable, make: Callable[[], P]) -> P:
        """Note one more request of the party `key`; `make` opens its account."""
        party = self._parties.get(key)
        if party is None:
            if len(self._parties) > 2 * self.num_present + _MANY:
                self._forget()
            party = self._parties[key] = make()
        if party.num_requests == 0:
            self.num_present += 1
            party.served = max(party.served, self.level)
        party.num_requests += 1
        self._share = None
        return party

    def leave(self, party: P) -> None:
        """Note that one of its requests has gone."""
        party.num_requests -= 1
        self._share = None
        if party.num_requests == 0:
            self.num_present -= 1

    def charge(self, party: P, num_tokens: int) -> float:
        """Note tokens that are computed for a party; returns what `served` grew by, less where the window ends."""
        served = max(party.served, self.level - self._window)
        self.level += num_tokens / self.num_present
        party.served = min(served + num_tokens, self.level + self._window)
        return party.served - served

    def take_back(self, party: P, num_tokens: int, charged: float) -> None:
        """Undo a charge, which returned `charged`; nobody may have entered or left in between."""
        party.served -= charged
        self.level -= num_tokens / self.num_present

    def rank(self, party: P, num_places: float) -> Rank:
        """Where a party stands when `num_places` requests can run for all of them.

        Light ones go before heavy ones: so a flood delays itself only. Who got nothing for long goes first of all: so
        many light ones do not starve a heavy one.
        """
        ahead = max(party.served - self.level, -self._window)
        # Two windows of tokens went to the others since its last turn, however many they are.
        if ahead * self.num_present <= -2 * self._window:
            return Claim.OWED, ahead
        return Claim.HEAVY if self.is_heavy(party, num_places) else Claim.LIGHT, ahead

    def is_heavy(self, party: P, num_places: float) -> bool:
        """Whether a party asks for more than its share of the places, or is as far ahead as can be."""
        is_ahead = party.served - self.level >= self._window
        return self.num_present > 1 and (is_ahead or party.num_requests > self.share(num_places))

    def share(self, num_places: float) -> float:
        """The places that each can have when those who ask for less leave theirs to the others (max-min fairness).

        No limit where all fit in, or where there is one party only.
        """
        if self._share is None or self._share[0] != num_places:
            self._share = num_places, self._find_share(num_places)
        return self._share[1]

    def _find_share(self, num_places: float) -> float:
        if self.num_present == 1:
            return math.inf
        num_left = num_places
        demands = sorted(party.num_requests for party in self)
        for index, demand in enumerate(demands):
            num_parties = len(demands) - index
            if demand * num_parties > num_left:
                return max(1.0, num_left / num_parties)
            num_left -= demand
        return math.inf

    def _forget(self) -> None:
        parties = self._parties.items()
        self._parties = {key: party for key, party in parties if party.num_requests or party.served > self.level}
