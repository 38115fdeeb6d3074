"""What every page is made with, and the routes that answer in HTML."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from atoll.errors import AtollError, Forbidden
from atoll.server.caller import Caller, caller_of
from atoll.server.errors import to_atoll_error
from atoll.server.gateway import Gateway, RequestEngine
from atoll.server.keys.accounts import Accounts
from atoll.server.metrics import ServerMetrics
from atoll.server.ui.csrf import CsrfTokens
from atoll.server.ui.door import Door
from atoll.server.ui.pages import Pages

if TYPE_CHECKING:
    from atoll.model.load import BaseModel

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Page(Protocol):
    """Some addresses of the site; made once, with the site."""

    router: APIRouter


@dataclass(frozen=True, kw_only=True)
class UiSettings:
    """Where the pages find things. runs: the folder of training runs. votes: that of votes between answers."""

    runs: Path
    votes: Path


@dataclass(frozen=True, kw_only=True)
class Site:
    """One server's pages; what they share."""

    settings: UiSettings
    gateway: Gateway
    engine: RequestEngine
    base: BaseModel
    metrics: ServerMetrics
    accounts: Accounts | None
    door: Door
    csrf: CsrfTokens
    pages: Pages

    def router(self) -> APIRouter:
        """A router whose requests are checked to be our own pages', and whose errors are pages."""
        site = self

        class UiRoute(APIRoute):
            def get_route_handler(self) -> Handler:
                handle = super().get_route_handler()

                async def checked(request: Request) -> Response:
                    try:
                        await site.csrf.check(request)
                        return await handle(request)
                    except (AtollError, RequestValidationError, HTTPException) as error:
                        return site.pages.error(request, to_atoll_error(error))

                return checked

        return APIRouter(route_class=UiRoute, include_in_schema=False)


def admin(request: Request) -> Caller:
    """The caller, who may change things for everybody. Raises Forbidden."""
    caller = caller_of(request)
    if "admin" not in caller.scopes:
        raise Forbidden("this needs the scope admin", mend="log in with a key that has the scope admin")
    return caller
