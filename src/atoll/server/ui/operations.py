"""Operations: what the engine does at this moment, and the ten minutes before it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from atoll.server.operations import STATE_PATH
from atoll.server.ui.operations_history import INTERVAL_S, QUANTILES, History
from atoll.server.ui.pages import HEADERS, NavItem
from atoll.server.ui.runs import Copy
from atoll.server.ui.site import Site, admin

_LATENCIES = {
    "first_token": "To the first token",
    "between_tokens": "Between tokens",
    "queue": "In the queue",
    "request": "Whole request",
}
_TROUBLES = {
    "cancelled": "the client left",
    "failed": "failed",
    "slow_reader": "the client did not read",
    "overloaded": "too many open requests",
    "rate_limit_exceeded": "a key's limit",
    "invalid_api_key": "no key, or a wrong one",
    "permission_denied": "not allowed",
}


class OperationsPage:
    """The page and the figures that it asks for, for admins: they tell of all tenants' adapters."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._history = History(site.engine.stats, site.metrics)
        site.pages.nav.append(NavItem("Operations", "/ui/operations", is_admin=True))
        self.router = site.router()
        self.router.get("/ui/operations")(self.show)
        self.router.get("/ui/operations/looks")(self.looks)

    async def show(self, request: Request) -> Response:
        """The page; its figures are from now, its charts are filled by the page itself."""
        admin(request)
        self._history.ensure_started()
        return self._site.pages.page(
            request,
            "operations.html",
            now=self._now(),
            latencies=_LATENCIES,
            quantiles=[f"p{q * 100:.0f}" for q in QUANTILES],
            poll_ms=int(INTERVAL_S * 1000),
            copies=self._copies(request),
        )

    async def looks(self, request: Request, after: int = 0) -> Response:
        """What was seen since the look of that number, and how things stand, as JSON."""
        admin(request)
        self._history.ensure_started()
        return JSONResponse({"looks": self._history.after(after), "now": self._now()}, headers=HEADERS)

    def _now(self) -> dict[str, Any]:
        """What needs no history."""
        stats = self._site.engine.stats()
        tiers = stats.tiers
        lookups = tiers.num_slot_hits + tiers.num_host_hits + tiers.num_reads
        troubles = self._site.metrics.troubles()
        return {
            "is_alive": self._site.engine.is_alive,
            "running": stats.num_running,
            "waiting": stats.num_waiting,
            "kv_blocks": stats.num_blocks,
            "slots": f"{len(stats.resident_adapters)} / {stats.num_slots}",
            "in_host": tiers.num_in_host,
            "host_bytes": tiers.host_bytes,
            "device_hits": _share(tiers.num_slot_hits, lookups),
            "host_hits": _share(tiers.num_host_hits, lookups),
            "disk_reads": _share(tiers.num_reads, lookups),
            "prefix": _share(stats.num_prefix_tokens_found, stats.num_prefix_tokens),
            "finished": stats.num_finished,
            "failed": stats.num_failed,
            "preemptions": stats.num_preemptions,
            "evictions": tiers.num_slot_evictions,
            "troubles": [
                {"reason": reason, "text": _TROUBLES.get(reason, reason.replace("_", " ")), "count": number}
                for reason, number in sorted(troubles.items(), key=lambda item: -item[1])
            ],
        }

    def _copies(self, request: Request) -> list[Copy]:
        address = f"{request.url.scheme}://{request.url.netloc}"
        key = ' -H "x-api-key: $ATOLL_KEY"' if self._site.accounts is not None else ""
        headers = ', headers={"x-api-key": os.environ["ATOLL_KEY"]}' if key else ""
        imports = "import os\n\nimport httpx" if key else "import httpx"
        return [
            Copy("curl", f"curl {address}{STATE_PATH}{key}\ncurl {address}/metrics{key}"),
            Copy("Python", f'{imports}\n\nprint(httpx.get("{address}{STATE_PATH}"{headers}).json())'),
            Copy("CLI", f"atoll ps --url {address}"),
        ]


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"
