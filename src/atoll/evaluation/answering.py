"""Getting the answers that no earlier run has left: from the engine in one mixed run, from providers in turn."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue

from atoll.engine import Completion, Engine, Event, FinishEvent, Request
from atoll.errors import AtollError
from atoll.evaluation.asking import LocalAsk, Prepared
from atoll.evaluation.contenders import Remote
from atoll.evaluation.journal import Entry, Journal
from atoll.evaluation.remote_call import RemoteCall
from atoll.evaluation.spending import RemoteOptions, Spending, TokenRate
from atoll.model.cache import OnProgress


def local_asks(prepared: Sequence[Prepared], num_slots: int) -> dict[str, LocalAsk]:
    """What the engine is asked, each once, in an order that mixes as many members as the engine has slots for."""
    asks: dict[str, LocalAsk] = {}
    for start in range(0, len(prepared), num_slots):
        for ask in _mixed(prepared[start : start + num_slots]):
            asks.setdefault(ask.key, ask)
    return asks


def remote_calls(prepared: Sequence[Prepared]) -> dict[Remote, dict[str, RemoteCall]]:
    """What each remote contender is asked, by key."""
    calls: dict[Remote, dict[str, RemoteCall]] = {}
    for line in (line for item in prepared for line in item.lines.values()):
        if line.remote is not None:
            found = {ask.key: ask for ask in line.asks if isinstance(ask, RemoteCall)}
            calls.setdefault(line.remote, {}).update(found)
    return calls


def answer_locally(
    engine: Engine, asks: Mapping[str, LocalAsk], journal: Journal, on_progress: OnProgress
) -> dict[str, Entry]:
    """The engine's answers by key, the journal's where it has them. A failed request is an entry with an error."""
    known = {key: entry for key in asks if (entry := journal.get(key)) is not None}
    missing = [ask for key, ask in asks.items() if key not in known]
    what = f"{len(missing)} answers"
    on_progress(what, 0.0)
    run = _LocalRun(missing, journal)

    def progress(num_done: int, num_requests: int) -> None:
        run.keep()
        on_progress(what, num_done / num_requests)

    try:
        completions = engine.generate(run.requests, progress)
    finally:
        run.keep()
    return known | {ask.key: run.entry(ask.key, done) for ask, done in zip(missing, completions, strict=True)}


def answer_remotely(
    calls: Mapping[Remote, Mapping[str, RemoteCall]],
    rates: Mapping[Remote, TokenRate | None],
    journal: Journal,
    options: RemoteOptions,
    on_progress: OnProgress,
) -> dict[str, Entry]:
    """All remote contenders' answers by key, under one spending cap that earlier runs' answers count for."""
    spending = Spending(options.max_usd, _spent_usd(calls, rates, journal))
    entries: dict[str, Entry] = {}
    for contender, wanted in calls.items():
        for key in wanted:
            if (entry := journal.get(key)) is not None:
                entries[key] = entry.model_copy(update={"cost_usd": _cost_usd(entry, rates[contender])})
        missing = [call for key, call in wanted.items() if key not in entries]
        if missing:
            entries |= _ask_all(contender, missing, rates[contender], spending, journal, options, on_progress)
    return entries


def _ask_all(
    contender: Remote,
    calls: Sequence[RemoteCall],
    rate: TokenRate | None,
    spending: Spending,
    journal: Journal,
    options: RemoteOptions,
    on_progress: OnProgress,
) -> dict[str, Entry]:
    # The client library takes a second to import, and most evaluations ask nobody outside.
    from atoll.evaluation.remote_pool import ask_all

    def told(num_done: int) -> None:
        spent = f" · ${spending.spent_usd:.4f}" if rate else ""
        on_progress(f"{contender.name}: {len(calls)} answers{spent}", num_done / len(calls))

    told(0)
    return ask_all(contender, calls, rate=rate, spending=spending, journal=journal, options=options, on_answer=told)


def _spent_usd(
    calls: Mapping[Remote, Mapping[str, RemoteCall]], rates: Mapping[Remote, TokenRate | None], journal: Journal
) -> float:
    """What earlier runs have paid for answers that are wanted now, and for those of them that were lost."""
    spent_usd = 0.0
    for contender, wanted in calls.items():
        spent_usd += journal.lost_usd(wanted)
        for key in wanted:
            entry = journal.get(key)
            spent_usd += (_cost_usd(entry, rates[contender]) or 0.0) if entry else 0.0
    return spent_usd


def _cost_usd(entry: Entry, rate: TokenRate | None) -> float | None:
    """What a provider's answer has cost: as it was noted then, else by the rate that is known now."""
    if entry.cost_usd is not None or rate is None:
        return entry.cost_usd
    return rate.cost_usd(entry)


class _LocalRun:
    """Requests whose answers are put into the journal as they come."""

    def __init__(self, asks: Sequence[LocalAsk], journal: Journal) -> None:
        self._journal = journal
        self._finished: SimpleQueue[FinishEvent] = SimpleQueue()
        self._keys: dict[str, str] = {}
        self._noted_at_s = time.perf_counter()
        self.requests = [self._request(ask) for ask in asks]

    def keep(self) -> None:
        """Note what has finished; called from the one thread that waits for the answers."""
        while not self._finished.empty():
            finish = self._finished.get()
            now_s = time.perf_counter()
            seconds, self._noted_at_s = now_s - self._noted_at_s, now_s
            self._journal.append(_entry(self._keys[finish.request_id], finish, seconds))

    def entry(self, key: str, completion: Completion) -> Entry:
        """What became of a request."""
        if (error := completion.error) is not None:
            return Entry(key=key, error=_one_line(error))
        if completion.finish is None or completion.finish.finish_reason == "abort":
            return Entry(key=key, error="the request was aborted")
        return self._journal.get(key) or _entry(key, completion.finish, 0.0)

    def _request(self, ask: LocalAsk) -> Request:
        request = Request(
            prompt_ids=ask.prompt_ids, sampling=ask.sampling, adapter=ask.adapter, on_event=self._on_event
        )
        self._keys[request.request_id] = ask.key
        return request

    def _on_event(self, event: Event) -> None:
        # On the step thread, which must not wait for a disk.
        if isinstance(event, FinishEvent) and event.finish_reason != "abort":
            self._finished.put(event)


def _entry(key: str, finish: FinishEvent, seconds: float) -> Entry:
    return Entry(
        key=key,
        prediction=finish.text,
        finish_reason=finish.finish_reason,
        num_prompt_tokens=finish.num_prompt_tokens,
        num_new_tokens=len(finish.token_ids),
        seconds=round(seconds, 6),
    )


def _mixed(prepared: Sequence[Prepared]) -> Iterator[LocalAsk]:
    """Every member's first example for every contender, then every member's second one, and so on."""
    rows = itertools.zip_longest(*(zip(*(line.asks for line in item.lines.values()), strict=True) for item in prepared))
    for row in rows:
        for ask in itertools.chain.from_iterable(asks for asks in row if asks is not None):
            if isinstance(ask, LocalAsk):
                yield ask


def _one_line(error: AtollError) -> str:
    return f"{error.what} ({error.why})" if error.why else error.what
