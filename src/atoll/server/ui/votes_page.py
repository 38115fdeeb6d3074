"""Where votes are given, counted and taken home."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import anyio
from fastapi import Form
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from atoll.server.caller import caller_of
from atoll.server.ui import copying
from atoll.server.ui.answering import figures
from atoll.server.ui.duels import Duels
from atoll.server.ui.file_cache import FileCache
from atoll.server.ui.pages import HEADERS
from atoll.server.ui.site import Site
from atoll.server.ui.votes import VoteJournal, Winner

EXPORT = "/ui/votes.jsonl"
_MAX_PAIRS = 200
_MAX_TENANTS = 64  # whose tallies are kept in mind


@dataclass(frozen=True)
class Pair:
    """How two contenders did against each other."""

    adapter: str
    one: str
    other: str
    num_one: int
    num_other: int
    num_ties: int


class VotesPage:
    """The tally, the export, and the address that votes are sent to. A tenant sees its own votes alone."""

    def __init__(self, site: Site, duels: Duels) -> None:
        self._site = site
        self._duels = duels
        self._journal = VoteJournal(site.settings.votes)
        self._counted = FileCache[list[Pair]](_MAX_TENANTS)
        self.router = site.router()
        self.router.get("/ui/votes")(self.show)
        self.router.post("/ui/votes")(self.vote)
        self.router.get(EXPORT)(self.export)

    async def vote(
        self, request: Request, duel: Annotated[str, Form(max_length=64)], winner: Annotated[Winner, Form()]
    ) -> Response:
        """Keep a vote, and tell who has answered what."""
        with self._duels.voting(duel, caller_of(request), winner) as (ended, vote):
            await anyio.to_thread.run_sync(self._journal.append, vote)
        ends = [figures(ended.ends[0]), figures(ended.ends[1])]
        return JSONResponse({"labels": vote.contenders, "ends": ends}, headers=HEADERS)

    async def show(self, request: Request) -> Response:
        """How often who was chosen."""
        pairs = await anyio.to_thread.run_sync(self._pairs, caller_of(request).tenant)
        url = copying.address(request) + EXPORT
        copies = [copying.curl(url, None, has_keys=self._site.accounts is not None)]
        return self._site.pages.page(request, "votes.html", pairs=pairs[:_MAX_PAIRS], export=EXPORT, copies=copies)

    async def export(self, request: Request) -> Response:
        """Preference data: prompt, chosen, rejected. Ties are left out."""
        lines = self._lines(caller_of(request).tenant)
        headers = HEADERS | {"content-disposition": 'attachment; filename="votes.jsonl"'}
        return StreamingResponse(iterate_in_threadpool(lines), media_type="application/jsonl", headers=headers)

    def _lines(self, tenant: str) -> Iterator[bytes]:
        for vote in self._journal.read(tenant):
            preference = vote.preference()
            if preference is not None:
                yield json.dumps(preference, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"

    def _pairs(self, tenant: str) -> list[Pair]:
        """Counted again where there is another vote: a full file is read for a second."""
        try:
            return self._counted.get(self._journal.path(tenant), lambda: self._count(tenant))
        except FileNotFoundError:
            return []

    def _count(self, tenant: str) -> list[Pair]:
        counts: dict[tuple[str, str, str], Counter[str]] = {}
        for vote in self._journal.read(tenant):
            one, other = sorted(vote.contenders)
            winner = {"a": vote.contenders[0], "b": vote.contenders[1], "tie": ""}[vote.winner]
            counts.setdefault((vote.adapter, one, other), Counter())[winner] += 1
        pairs = [Pair(*key, count[key[1]], count[key[2]], count[""]) for key, count in counts.items()]
        return sorted(pairs, key=lambda pair: (-pair.num_one - pair.num_other - pair.num_ties, pair.adapter))
