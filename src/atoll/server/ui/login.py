"""Log in with a key, and out again."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from atoll.errors import AtollError, Forbidden, RateLimited, Unauthorized
from atoll.server.keys.keys import MAX_KEY_CHARS
from atoll.server.ui.door import HOME, LOGIN, PREFIX, session_id_of
from atoll.server.ui.sessions import COOKIE, LIFETIME_S, LoginLimiter
from atoll.server.ui.site import Site

# The form that brings it has to be within what the body of a stranger may have.
_MAX_NEXT_CHARS = 1000


class LoginPage:
    """The form, and what it leads to. A server without keys has no login: it sends everybody on."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._limiter = LoginLimiter()
        self.router = site.router()
        self.router.get(LOGIN)(self.form)
        self.router.post(LOGIN)(self.log_in)
        self.router.post("/ui/logout")(self.log_out)

    async def form(self, request: Request, next: str = HOME) -> Response:
        """The form; `next` is where to go afterwards."""
        if self._site.accounts is None:
            return RedirectResponse(_inside(next), status_code=303)
        return self._site.pages.page(request, "login.html", next=_inside(next), message="")

    async def log_in(
        self, request: Request, key: Annotated[str, Form(max_length=4 * MAX_KEY_CHARS)], next: Annotated[str, Form()]
    ) -> Response:
        """Start a session for a valid key. What was tried is neither kept nor logged."""
        accounts = self._site.accounts
        if accounts is None:
            return RedirectResponse(_inside(next), status_code=303)
        try:
            found = accounts.ring.find(key.strip())
            if "use" not in found.scopes:
                raise Forbidden("this key may not use the page", mend="log in with a key that has the scope use")
        except (Unauthorized, Forbidden) as error:
            told = self._told(request, error)
            message = f"{told.what}; {told.mend}"
            return self._site.pages.page(request, "login.html", told.http_status, next=_inside(next), message=message)
        response = RedirectResponse(_inside(next), status_code=303)
        response.set_cookie(
            COOKIE,
            self._site.door.sessions.start(found.key_id),
            max_age=LIFETIME_S,
            path=PREFIX.rstrip("/"),
            httponly=True,
            samesite="strict",
            secure=_is_https(request),
        )
        return response

    def _told(self, request: Request, error: AtollError) -> AtollError:
        """What is wrong with a key, as long as its address has not tried too many."""
        address = request.client.host if request.client else ""
        try:
            self._limiter.check(address)
        except RateLimited as limited:
            return limited
        self._limiter.failed(address)
        return error

    async def log_out(self, request: Request) -> Response:
        """End the session here and in the browser."""
        session_id = session_id_of(request.scope)
        if session_id is not None:
            self._site.door.sessions.end(session_id)
        response = RedirectResponse(LOGIN, status_code=303)
        response.delete_cookie(COOKIE, path=PREFIX.rstrip("/"))
        return response


def _inside(target: str) -> str:
    """An address of ours; anything else would let a link send people elsewhere after they have logged in."""
    is_ours = target.startswith(PREFIX) and "\\" not in target and target.isprintable() and ".." not in target
    is_ours = is_ours and len(target) <= _MAX_NEXT_CHARS
    return target if is_ours and not target.startswith((LOGIN, "/ui/logout")) else HOME


def _is_https(request: Request) -> bool:
    """Whether the browser speaks TLS, to us or to a proxy before us. A false claim only hurts who makes it."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto", "") == "https"
