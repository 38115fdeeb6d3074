"""The gallery of adapters, a page for each of them, and what admins may do with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlencode

import anyio
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from atoll.adapters.store import Revision
from atoll.config.template import parse_template
from atoll.errors import AdapterNotFound
from atoll.log import get_logger
from atoll.server.caller import Caller, caller_of
from atoll.server.ui import copying
from atoll.server.ui.adapters_shelf import AdapterShelf, Card
from atoll.server.ui.pages import NavItem
from atoll.server.ui.site import Site, admin

logger = get_logger(__name__)

GALLERY = "/ui/adapters"
PAGE_SIZE = 60
_MAX_REVISIONS = 50
_SORTS: dict[str, Callable[[Card], Any]] = {
    "name": lambda card: card.facts.name,
    "score": lambda card: -(card.facts.scores.adapter if card.facts.scores else -1.0),
    "lift": lambda card: -_lift(card),
    "size": lambda card: -card.facts.size_bytes,
    "requests": lambda card: -card.use.num_requests,
    "last use": lambda card: -(card.use.last_at_s or 0.0),
}
_TIERS = ("device", "host", "disk", "unloaded")

Action = Literal["load", "pin", "unpin", "unload", "restore", "delete"]


@dataclass(frozen=True)
class Choice:
    """What the gallery's address asks for."""

    q: str
    category: str
    tier: str
    sort: str
    page: int

    def query(self, **changes: str | int) -> str:
        """The address of the same choice but for some changes; a change begins at the first page."""
        fields = vars(self) | {"page": 1} | changes
        shown = {
            name: value
            for name, value in fields.items()
            if value and (name, value) not in (("page", 1), ("sort", "name"))
        }
        return urlencode(shown)

    def takes(self, card: Card) -> bool:
        """Whether a card is one of the chosen."""
        words = f"{card.facts.name} {card.facts.description} {card.facts.category}".lower()
        is_found = all(word in words for word in self.q.lower().split())
        fits = self.category in ("", card.facts.category) and self.tier in ("", card.held.tier)
        return is_found and fits


class AdaptersPage:
    """All pages about adapters."""

    def __init__(self, site: Site, shelf: AdapterShelf) -> None:
        self._site = site
        self._shelf = shelf
        site.pages.nav.append(NavItem("Adapters", GALLERY))
        self.router = site.router()
        self.router.get(GALLERY)(self.gallery)
        self.router.get(GALLERY + "/{name}")(self.detail)
        self.router.post("/ui/admin/adapters/{name}/{action}")(self.act)

    async def gallery(self, request: Request) -> Response:
        """Cards, chosen and sorted by the address."""
        choice = _choice(request)
        cards = await anyio.to_thread.run_sync(self._shelf.cards, caller_of(request))
        chosen = sorted(filter(choice.takes, cards), key=_SORTS[choice.sort])
        first = (choice.page - 1) * PAGE_SIZE
        return self._site.pages.page(
            request,
            "adapters.html",
            choice=choice,
            cards=chosen[first : first + PAGE_SIZE],
            num_chosen=len(chosen),
            num_all=len(cards),
            num_pages=-(-len(chosen) // PAGE_SIZE),
            categories=sorted({card.facts.category for card in cards}),
            tiers=[tier for tier in _TIERS if any(card.held.tier == tier for card in cards)],
            sorts=list(_SORTS),
            copies=self._copies(request, "/v1/models", '["data"]', "ls"),
        )

    async def detail(self, request: Request, name: str) -> Response:
        """Everything about one adapter."""
        card, revisions = await anyio.to_thread.run_sync(self._one, name, caller_of(request))
        contract = card.facts.adapter.contract
        return self._site.pages.page(
            request,
            "adapter.html",
            card=card,
            contract=contract,
            template=parse_template(contract.prompt.template) if contract else (),
            revisions=revisions[::-1][:_MAX_REVISIONS],
            copies=self._copies(request, f"/v1/models/{quote(name)}", "", "show", name),
        )

    async def act(self, request: Request, name: str, action: Action) -> Response:
        """Do something with an adapter, then show where it is now."""
        caller = admin(request)
        await anyio.to_thread.run_sync(self._act, name, action, caller)
        logger.info("adapter %s: %s", name, action)
        target = GALLERY if action == "delete" else f"{GALLERY}/{quote(name)}"
        return RedirectResponse(target, status_code=303)

    def _one(self, name: str, caller: Caller) -> tuple[Card, list[Revision]]:
        return self._shelf.card(name, caller), self._site.gateway.catalog.store.revisions(name)

    def _act(self, name: str, action: Action, caller: Caller) -> None:
        if not caller.may_use(name):
            raise AdapterNotFound(f"no adapter {name[:80]!r}")
        catalog, engine = self._site.gateway.catalog, self._site.engine
        adapter = catalog.store.resolve(name)
        if action in ("load", "pin"):
            engine.pin(adapter)
        if action in ("load", "unpin", "delete"):
            engine.unpin(adapter.name)
        if action == "unload":
            self._site.gateway.unload(name)
        elif action == "restore":
            catalog.restore(name)
        elif action == "delete":
            catalog.store.remove(name)
        self._shelf.changed()

    def _copies(self, request: Request, path: str, answer: str, *words: str) -> list[copying.Copy]:
        url, has_keys = copying.address(request) + path, self._site.accounts is not None
        return [
            copying.curl(url, None, has_keys=has_keys),
            copying.python(url, None, answer, has_keys=has_keys),
            copying.command(*words),
        ]


def _choice(request: Request) -> Choice:
    asked = request.query_params
    sort, page = asked.get("sort", "name"), asked.get("page", "1")
    return Choice(
        q=asked.get("q", "")[:100],
        category=asked.get("category", "")[:64],
        tier=asked.get("tier", "") if asked.get("tier") in _TIERS else "",
        sort=sort if sort in _SORTS else "name",
        page=max(1, int(page)) if page.isascii() and page.isdecimal() and len(page) < 6 else 1,
    )


def _lift(card: Card) -> float:
    """For sorting: cards without one are last."""
    lift = card.facts.scores.lift if card.facts.scores else None
    return -2.0 if lift is None else lift
