"""The adapters of one server as a caller sees them: what they are, where they are, and how they are used."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from atoll.adapters.catalog import AdapterCatalog
from atoll.adapters.store import CARD_NAME, StoredAdapter
from atoll.adapters.tiers import TieredAdapter
from atoll.errors import AdapterNotFound
from atoll.server.adapter_use import AdapterUse, Use
from atoll.server.caller import ANYBODY, Caller
from atoll.server.gateway import RequestEngine
from atoll.server.ui.adapters_facts import AdapterFacts, Scores, published_gpt_4, read_facts
from atoll.server.ui.leaderboard_table import ResultsFiles, Row

_FRESH_S = 2.0
_SCORES_FRESH_S = 10.0
_MAX_FACTS = 4096

Tier = Literal["device", "host", "disk", "unloaded"]


@dataclass(frozen=True)
class Held:
    """Where an adapter is at this moment, and what it does. num_users: requests that run with it."""

    tier: Tier = "disk"
    is_pinned: bool = False
    num_users: int = 0


@dataclass(frozen=True)
class Card:
    """One adapter of the gallery."""

    facts: AdapterFacts
    held: Held
    use: Use


class AdapterShelf:
    """Reads the store at most every two seconds, however many look. Methods block: call them in threads."""

    def __init__(
        self,
        catalog: AdapterCatalog,
        engine: RequestEngine,
        use: AdapterUse,
        results: ResultsFiles,
        base_digest: str,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog = catalog
        self._engine = engine
        self._use = use
        self._results = results
        self._base_digest = base_digest
        self._now_s = now_s
        self._lock = threading.Lock()
        self._facts: OrderedDict[tuple[str, str, int], AdapterFacts] = OrderedDict()
        self._listed: tuple[float, list[AdapterFacts]] | None = None
        self._scored: tuple[float, dict[str, Row]] | None = None

    def all(self, caller: Caller) -> list[AdapterFacts]:
        """The caller's adapters that belong to this server's base, by name."""
        return [facts for facts in self._all() if caller.may_use(facts.name)]

    def cards(self, caller: Caller) -> list[Card]:
        """All of them with what the engine knows."""
        held, pinned_names = self._held()
        return [self._card(facts, held, pinned_names, caller) for facts in self.all(caller)]

    def card(self, adapter_id: str, caller: Caller) -> Card:
        """One adapter, by name or name@revision. Raises AdapterNotFound, for those of others too."""
        return self._card(self.find(adapter_id, caller), *self._held(), caller)

    def find(self, adapter_id: str, caller: Caller) -> AdapterFacts:
        """Raises AdapterNotFound, for the adapters of others too."""
        name = adapter_id.partition("@")[0]
        if caller.may_use(name):
            known = [facts for facts in self._all() if adapter_id in (facts.name, facts.id)]
            if known:
                return known[0]
            if "@" in adapter_id:
                with self._lock:
                    return self._with_scores(self._read(self._catalog.resolve(adapter_id)))
        raise AdapterNotFound(f"no adapter {adapter_id[:80]!r}", mend="choose one of the list")

    def changed(self) -> None:
        """Read the store anew: somebody has changed it."""
        with self._lock:
            self._listed = None

    def _all(self) -> list[AdapterFacts]:
        with self._lock:
            if self._listed is None or self._now_s() - self._listed[0] > _FRESH_S:
                stored = [adapter for adapter in self._catalog.store.list() if self._fits(adapter)]
                self._listed = self._now_s(), [self._with_scores(self._read(adapter)) for adapter in stored]
            return self._listed[1]

    def _fits(self, adapter: StoredAdapter) -> bool:
        return adapter.contract is None or adapter.contract.base.digest == self._base_digest

    def _read(self, adapter: StoredAdapter) -> AdapterFacts:
        card = adapter.folder / CARD_NAME
        key = adapter.id, adapter.digest, card.stat().st_mtime_ns if card.is_file() else 0
        facts = self._facts.get(key)
        if facts is None:
            facts = self._facts[key] = read_facts(adapter)
            while len(self._facts) > _MAX_FACTS:
                self._facts.popitem(last=False)
        return facts

    def _with_scores(self, facts: AdapterFacts) -> AdapterFacts:
        """With the base's score on the same examples beside its own, where an evaluation of it lies in the runs."""
        if self._scored is None or self._now_s() - self._scored[0] > _SCORES_FRESH_S:
            rows = self._results.board(ANYBODY).rows
            self._scored = self._now_s(), {row.adapter_id: row for row in rows}
        row = self._scored[1].get(facts.id)
        if row is None or "adapter" not in row.cells:
            return facts
        own, base = row.cells["adapter"], row.cells.get("base")
        gpt_4 = row.cells["gpt_4"].value if "gpt_4" in row.cells else published_gpt_4(facts.task)
        scores = Scores(row.metric, own.value, own.low, own.high, base.value if base else None, gpt_4)
        return replace(facts, scores=scores)

    def _held(self) -> tuple[dict[str, TieredAdapter], set[str]]:
        """What the engine holds, by digest, and the names that are pinned, perhaps an older revision's."""
        held = self._engine.adapters()
        return {one.adapter.digest: one for one in held}, {one.adapter.name for one in held if one.is_pinned}

    def _card(
        self, facts: AdapterFacts, held: dict[str, TieredAdapter], pinned_names: set[str], caller: Caller
    ) -> Card:
        one, is_pinned = held.get(facts.adapter.digest), facts.name in pinned_names
        found = Held(one.tier, is_pinned, one.num_users) if one else Held(is_pinned=is_pinned)
        if self._catalog.is_unloaded(facts.name):
            found = Held("unloaded")
        return Card(facts, found, self._use.of(facts.id, caller))
