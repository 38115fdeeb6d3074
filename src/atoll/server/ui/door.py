"""How browsers come in: what the guard asks about addresses below /ui, where a session stands for a key."""

from __future__ import annotations

from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from atoll.errors import AtollError, Unauthorized
from atoll.server.caller import SCOPE_KEY, Caller
from atoll.server.ui.sessions import COOKIE, Sessions
from atoll.server.ui.static_files import STATIC_PREFIX

PREFIX = "/ui/"
HOME = "/ui/try"
LOGIN = "/ui/login"
NOBODY = Caller(scopes=frozenset(), adapters=())
"""Who sees the login page: a caller that may do nothing."""

# What a key with the scope `use` may ask for; every other address below /ui is for admins.
USE_PATHS = frozenset(
    {
        HOME,
        "/ui/logout",
        "/ui/preview",
        "/ui/answers",
        "/ui/votes",
        "/ui/votes.jsonl",
        "/ui/adapters",
        "/ui/leaderboard",
        "/ui/runs",
        "/ui/cost",
    }
)
USE_PREFIXES = ("/ui/adapters/", "/ui/leaderboard/", "/ui/runs/", "/ui/cost/")


class Door:
    """Sessions, and the few addresses that need none.

    show_error: how pages show what is wrong; set once they are made.
    """

    show_error: Callable[[Request, AtollError], Response]

    def __init__(self) -> None:
        self.sessions = Sessions()

    def is_open(self, path: str) -> bool:
        """Whether everybody may see an address: the login, and the files that pages are made of."""
        return path == LOGIN or path.startswith(STATIC_PREFIX)

    def is_for_use(self, path: str) -> bool:
        """Whether the scope `use` is enough."""
        return path in USE_PATHS or path.startswith(USE_PREFIXES)

    def key_id(self, scope: Scope) -> str | None:
        """Whose session a request belongs to; only below /ui, so that no cookie ever opens the API."""
        if not scope["path"].startswith(PREFIX):
            return None
        session_id = session_id_of(scope)
        return self.sessions.key_id(session_id) if session_id else None

    def to_page(self, scope: Scope) -> RedirectResponse | None:
        """Where a browser that opens / is sent; API clients get LoRAX's answer there."""
        if scope["path"] != "/" or not _wants_page(scope):
            return None
        return RedirectResponse(_with_query(HOME, scope), status_code=303)

    def refused(self, scope: Scope, error: AtollError) -> Response | None:
        """What a browser is shown that may not come in: the login, from which it is led back, or what is wrong.

        None for programs, which are told in their own dialect.
        """
        if not scope["path"].startswith(PREFIX) or not _wants_page(scope):
            return None
        if isinstance(error, Unauthorized):
            wanted = quote(_with_query(scope["path"], scope), safe="")
            return RedirectResponse(f"{LOGIN}?next={wanted}", status_code=303)
        scope.setdefault(SCOPE_KEY, NOBODY)
        return self.show_error(Request(scope), error)


def session_id_of(scope: Scope) -> str | None:
    """The session's id in a request's cookies; None where there is none, or where several headers have one."""
    found = []
    for name, value in scope["headers"]:
        if name == b"cookie":
            try:
                morsel = SimpleCookie(value.decode("latin-1")).get(COOKIE)
            except CookieError:
                continue
            if morsel is not None:
                found.append(morsel.value)
    return found[0] if len(found) == 1 else None


def _wants_page(scope: Scope) -> bool:
    if scope["method"] != "GET":
        return False
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


def _with_query(path: str, scope: Scope) -> str:
    query = scope.get("query_string", b"").decode("latin-1")
    return f"{quote(path)}?{query}" if query else quote(path)
