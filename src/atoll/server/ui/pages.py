"""Makes HTML: templates with escaping always on, one set of headers, and the parts that all pages share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from atoll import __version__
from atoll.errors import AtollError
from atoll.server.caller import caller_of
from atoll.server.errors import error_body
from atoll.server.ui import words
from atoll.server.ui.csrf import CsrfTokens
from atoll.server.ui.static_files import StaticFiles

THEME_COOKIE = "atoll_theme"
_THEMES = ("light", "dark")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class NavItem:
    """An entry of the navigation; `is_admin` ones are shown to admins alone."""

    label: str
    path: str
    is_admin: bool = False


class Pages:
    """Renders templates. `nav` grows while the pages are put together, then stays."""

    def __init__(self, static: StaticFiles, csrf: CsrfTokens, base_name: str, *, has_keys: bool) -> None:
        self.nav: list[NavItem] = []
        self._csrf = csrf
        self._environment = Environment(
            loader=PackageLoader("atoll.server.ui"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=StrictUndefined,
            auto_reload=False,
        )
        self._environment.globals |= {
            "static": static.url,
            "base_name": base_name,
            "has_keys": has_keys,
            "version": __version__,
        }
        self._environment.filters |= words.FILTERS

    def page(self, request: Request, name: str, status: int = 200, /, **content: Any) -> HTMLResponse:
        """A whole page: `name` extends base.html."""
        caller = caller_of(request)
        is_admin = "admin" in caller.scopes
        theme = request.cookies.get(THEME_COOKIE, "")
        shared = {
            "path": request.url.path,
            "csrf": self._csrf.token(request),
            "caller": caller,
            "is_admin": is_admin,
            "theme": theme if theme in _THEMES else "",
            "nav": [item for item in self.nav if caller.scopes and (is_admin or not item.is_admin)],
        }
        text = self._environment.get_template(name).render(shared | content)
        return HTMLResponse(text, status_code=status, headers=HEADERS)

    def part(self, request: Request, name: str, status: int = 200, /, **content: Any) -> HTMLResponse:
        """A part of a page, to be put into one that a browser shows already."""
        is_admin = "admin" in caller_of(request).scopes
        shared = {"csrf": self._csrf.token(request), "is_admin": is_admin}
        text = self._environment.get_template(name).render(shared | content)
        return HTMLResponse(text, status_code=status, headers=HEADERS)

    def error(self, request: Request, error: AtollError) -> HTMLResponse:
        """What went wrong: as a page for a browser that opens an address, as a line for our own scripts."""
        status, body = error_body(request.url.path, error)
        if request.headers.get("sec-fetch-mode", "navigate") == "navigate" and "hx-request" not in request.headers:
            return self.page(request, "error.html", status, status=status, message=body["error"])
        return self.part(request, "_error.html", status, message=body["error"])
