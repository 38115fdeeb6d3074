"""Many requests to a remote contender beside each other, under a spending cap, each answer kept as it comes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import anyio
from anyio.from_thread import start_blocking_portal

from atoll.errors import AtollError, Unavailable
from atoll.evaluation.contenders import Remote
from atoll.evaluation.journal import Entry, Journal
from atoll.evaluation.remote import Refused, RemoteClient, TryAgain
from atoll.evaluation.remote_call import RemoteCall
from atoll.evaluation.spending import RemoteOptions, Spending, TokenRate

# So many failures before the first answer are no bad luck: the endpoint does not work.
MAX_FAILURES_BEFORE_ANSWER = 20


def ask_all(
    contender: Remote,
    calls: Sequence[RemoteCall],
    *,
    rate: TokenRate | None,
    spending: Spending,
    journal: Journal,
    options: RemoteOptions,
    on_answer: Callable[[int], None],
) -> dict[str, Entry]:
    """Every call's answer or failure by its key; on_answer gets how many there are, on another thread.

    Answers are in the journal when this returns or raises; failures that may pass are not, so that the next run asks
    again. Raises what makes it pointless to go on, OverBudget before the cap could be passed, after the requests that
    are under way have ended.
    """
    pool = _Pool(contender, calls, rate, spending, journal, options, on_answer)
    with start_blocking_portal() as portal:
        return portal.start_task_soon(pool.run).result()


class _Pool:
    def __init__(
        self,
        contender: Remote,
        calls: Sequence[RemoteCall],
        rate: TokenRate | None,
        spending: Spending,
        journal: Journal,
        options: RemoteOptions,
        on_answer: Callable[[int], None],
    ) -> None:
        self._contender = contender
        self._rate = rate
        self._spending = spending
        self._journal = journal
        self._options = options
        self._on_answer = on_answer
        self._waiting: Iterator[RemoteCall] = iter(calls)
        self._num_workers = min(options.concurrency, len(calls))
        self._entries: dict[str, Entry] = {}
        self._has_answer = False
        self._stop: AtollError | None = None
        self._stopping = anyio.Event()

    async def run(self) -> dict[str, Entry]:
        self._client = RemoteClient(self._contender, self._options.policy)
        try:
            async with anyio.create_task_group() as group:
                for _ in range(self._num_workers):
                    group.start_soon(self._work)
        finally:
            with anyio.CancelScope(shield=True):
                await self._client.close()
        if self._stop is not None:
            raise self._stop
        return self._entries

    async def _work(self) -> None:
        """Ask until nothing waits or something says to stop; what is under way elsewhere may end, as it is paid."""
        while self._stop is None and (call := next(self._waiting, None)) is not None:
            try:
                entry = await self._answer(call)
            except AtollError as error:
                self._give_up(error)
                return
            self._entries[call.key] = entry
            self._on_answer(len(self._entries))
            self._check_works(entry)

    def _give_up(self, error: AtollError) -> None:
        self._stop = self._stop or error
        self._stopping.set()

    def _check_works(self, entry: Entry) -> None:
        self._has_answer = self._has_answer or entry.error is None
        if not self._has_answer and len(self._entries) >= MAX_FAILURES_BEFORE_ANSWER:
            what = f"{self._contender.detail} has answered none of the first {len(self._entries)} requests"
            self._give_up(Unavailable(what, why=entry.error, mend="check that it works, then run again"))

    async def _answer(self, call: RemoteCall) -> Entry:
        policy = self._options.policy
        why = "no attempt was made"
        for attempt in range(policy.max_attempts):
            try:
                return await self._attempt(call)
            except Refused as refused:
                return Entry(key=call.key, error=refused.why)
            except TryAgain as again:
                why = f"{again.why} (attempt {attempt + 1} of {policy.max_attempts})"
                delay_s = policy.delay_s(attempt, again.retry_after_s, random.random())
            if attempt + 1 < policy.max_attempts:
                with anyio.move_on_after(delay_s):
                    await self._stopping.wait()
            if self._stop is not None:
                break
        return Entry(key=call.key, error=why)

    async def _attempt(self, call: RemoteCall) -> Entry:
        """One paid attempt: its worst price is held before it, and what it has cost taken after it."""
        worst_usd = self._rate.worst_usd(call) if self._rate else 0.0
        async with self._spending.holding(worst_usd) as bill:
            try:
                entry = await self._client.attempt(call)
            except TryAgain as again:
                if again.is_billed and self._rate is not None:
                    bill(worst_usd)
                    self._journal.append(Entry(key=call.key, cost_usd=worst_usd, is_lost=True))
                raise
            if self._rate is not None:
                entry = entry.model_copy(update={"cost_usd": self._rate.cost_usd(entry)})
                bill(entry.cost_usd or 0.0)
            self._journal.append(entry)
            return entry
