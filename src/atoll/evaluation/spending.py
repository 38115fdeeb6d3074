"""A cap on what remote contenders may cost: dollars are held before a request and settled after it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from atoll.config.prices import token_price
from atoll.errors import OverBudget, UsageError
from atoll.evaluation.contenders import Remote
from atoll.evaluation.journal import Entry
from atoll.evaluation.remote_call import RemoteCall, RetryPolicy

_MILLION = 1_000_000


@dataclass(frozen=True)
class TokenRate:
    """What a model's tokens cost, in dollars a million."""

    usd_per_million_input: float
    usd_per_million_output: float

    def cost_usd(self, entry: Entry) -> float:
        """What an answer has cost."""
        return self._usd(entry.num_prompt_tokens, entry.num_new_tokens)

    def worst_usd(self, call: RemoteCall) -> float:
        """The most that one attempt at an answer can cost."""
        return self._usd(call.max_prompt_tokens, call.max_new_tokens)

    def _usd(self, num_input: int, num_output: int) -> float:
        return (num_input * self.usd_per_million_input + num_output * self.usd_per_million_output) / _MILLION


@dataclass(frozen=True)
class RemoteOptions:
    """How remote contenders are asked: so many requests at once, and for no more than `max_usd` in all.

    max_usd: None for no cap; answers of earlier runs that are used count. unlisted: the rate of models that the price
    table does not have.
    """

    concurrency: int = 8
    max_usd: float | None = None
    unlisted: TokenRate | None = None
    policy: RetryPolicy = field(default_factory=RetryPolicy)


DEFAULT_OPTIONS = RemoteOptions()


def token_rates(contenders: Sequence[Remote], options: RemoteOptions) -> dict[Remote, TokenRate | None]:
    """The rate of each contender: the price table's for OpenAI's models, else the options' own.

    Raises UsageError for a contender without a rate where there is a cap to keep to.
    """
    rates: dict[Remote, TokenRate | None] = {}
    for contender in contenders:
        # The same model costs something else elsewhere.
        listed = token_price(contender.model) if contender.url is None else None
        if listed is None and options.unlisted is None and options.max_usd is not None:
            raise UsageError(
                f"no price is known for {contender.detail}, so --max-usd cannot be kept",
                where="--max-usd",
                mend="give --usd-per-million-input and --usd-per-million-output (0 and 0 for a server of your own)",
            )
        own = TokenRate(listed.usd_per_million_input, listed.usd_per_million_output) if listed else None
        rates[contender] = own or options.unlisted
    return rates


class Spending:
    """What has been spent, and what requests under way may still cost; the two together never exceed the cap."""

    def __init__(self, max_usd: float | None = None, spent_usd: float = 0.0) -> None:
        """spent_usd: by earlier runs, whose answers are used."""
        self.spent_usd = spent_usd
        self._max_usd = max_usd
        self._held_usd = 0.0
        self._num_held = 0
        self._changed = anyio.Event()

    @asynccontextmanager
    async def holding(self, usd: float) -> AsyncIterator[Callable[[float], None]]:
        """Hold `usd` until the end of the block, which may bill less or nothing; waits for others where that helps.

        Raises OverBudget where the cap leaves no room for `usd`.
        """
        while self._max_usd is not None and self.spent_usd + self._held_usd + usd > self._max_usd:
            if not self._num_held:
                raise self._over(self._max_usd, usd)
            await self._changed.wait()
        self._held_usd += usd
        self._num_held += 1
        try:
            yield self._bill
        finally:
            self._num_held -= 1
            # Sums of many small numbers drift; nothing is held by nobody.
            self._held_usd = self._held_usd - usd if self._num_held else 0.0
            self._changed.set()
            self._changed = anyio.Event()

    def _bill(self, usd: float) -> None:
        self.spent_usd += usd

    def _over(self, max_usd: float, usd: float) -> OverBudget:
        return OverBudget(
            f"the spending cap is reached: ${self.spent_usd:.4f} of ${max_usd:.4f}",
            where="--max-usd",
            why=f"the next request could cost ${usd:.4f}",
            mend="raise --max-usd and run again: all answers so far are kept, and only the rest is asked",
        )
