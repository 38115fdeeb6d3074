"""Requests that change something come from our own pages: their origin is ours, and they carry a session's token."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from starlette.requests import Request

from atoll.errors import Forbidden
from atoll.server.ui.door import session_id_of

HEADER = "x-atoll-csrf"
FIELD = "csrf"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_MEND = "load the page again and repeat what you did"


class CsrfTokens:
    """Tokens made of the session's id and a secret of this process; nothing is kept."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def token(self, request: Request) -> str:
        """The token that this browser has to send; without a session that of everybody who can read our pages."""
        session_id = session_id_of(request.scope) or ""
        return hmac.new(self._secret, session_id.encode(), hashlib.sha256).hexdigest()

    async def check(self, request: Request) -> None:
        """Raise Forbidden unless the request is a safe one, or one of our own pages sends it.

        The token stands in a header, or in the field `csrf` of a form that has no file.
        """
        if request.method in _SAFE_METHODS:
            return
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
            raise Forbidden("pages of other sites may not use this page", mend=_MEND)
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise Forbidden("pages of other sites may not use this page", mend=_MEND)
        shown = request.headers.get(HEADER) or await _form_token(request)
        if not hmac.compare_digest(shown.encode(), self.token(request).encode()):
            raise Forbidden("this page is out of date", why="its token is not valid", mend=_MEND)


async def _form_token(request: Request) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        return ""
    value = (await request.form(max_files=0, max_fields=200)).get(FIELD)
    return value if isinstance(value, str) else ""
