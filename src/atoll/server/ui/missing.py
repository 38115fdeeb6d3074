"""Addresses below /ui that do not exist, told as a page. To be the last router."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from atoll.errors import NotFound
from atoll.server.ui.site import Site


class MissingPage:
    """Answers what no other route has taken."""

    def __init__(self, site: Site) -> None:
        self.router = site.router()
        self.router.get("/ui/{rest:path}")(self.missing)

    async def missing(self, request: Request, rest: str) -> Response:
        """Always raises NotFound."""
        raise NotFound("there is no such page", mend="go on from the navigation above")
