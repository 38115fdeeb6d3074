"""Who comes in: decided on the address that the application itself will route, and closed unless listed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as ConnectionScope

from atoll.errors import AtollError, Forbidden, Unauthorized
from atoll.server.access import HEALTH_PATHS
from atoll.server.caller import ANYBODY, SCOPE_KEY
from atoll.server.errors import HeadTooLargeError, error_response
from atoll.server.keys.accounts import Accounts
from atoll.server.keys.hosts import HostRule
from atoll.server.settings import ServerSettings
from atoll.server.ui.door import NOBODY, Door

# Everything else, addresses that do not exist among it, is for keys with the scope admin.
USE_PATHS = frozenset(
    {
        "/",
        "/docs",
        "/embed",
        "/generate",
        "/generate_stream",
        "/info",
        "/invocations",
        "/openapi.json",
        "/ping",
        "/tokenize",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/models",
        "/v1/responses",
    }
)
USE_PREFIXES = ("/v1/models/",)
_MEND = "send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"


class Guard:
    """ASGI middleware. With `accounts` every address but the health checks needs a key; without, a host of `hosts`.

    door: of the web page, where there is one: below /ui a session stands for its key, and login and static files are
    for everybody. on_refused: hears the code of each refusal.
    """

    def __init__(
        self,
        app: ASGIApp,
        accounts: Accounts | None,
        hosts: HostRule,
        settings: ServerSettings,
        on_refused: Callable[[str], None],
        door: Door | None = None,
    ) -> None:
        self._app = app
        self._door = door
        self._on_refused = on_refused
        self._accounts = accounts
        self._hosts = hosts
        self._settings = settings

    async def __call__(self, scope: ConnectionScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there are none, and one that comes later shall not come in unseen
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with ExitStack() as leaving:
            answer: ASGIApp = self._app
            try:
                self._check_head(scope)
                if scope["path"] not in HEALTH_PATHS:
                    answer = (self._door and self._door.to_page(scope)) or answer
                    if answer is self._app:
                        self._let_in(scope, leaving)
            except AtollError as error:
                self._on_refused(error.code)
                answer = self._refusal(scope, error)
            await answer(scope, receive, send)

    def _check_head(self, scope: ConnectionScope) -> None:
        """What comes in one packet; the connection itself bounds a head that comes in several."""
        num_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        num_bytes += len(scope["raw_path"]) + len(scope["query_string"])
        if num_bytes > self._settings.max_header_bytes or len(scope["headers"]) > self._settings.max_headers:
            raise HeadTooLargeError("the request has too many headers, or too long ones, or too long an address")

    def _refusal(self, scope: ConnectionScope, error: AtollError) -> ASGIApp:
        page = self._door.refused(scope, error) if self._door else None
        return page or error_response(scope["path"], error)

    def _let_in(self, scope: ConnectionScope, leaving: ExitStack) -> None:
        """Note in the scope who it is. Raises Unauthorized, Forbidden, RateLimited, Unavailable."""
        if self._accounts is None:
            self._hosts.check(scope)
            scope[SCOPE_KEY] = ANYBODY
            return
        if self._door is not None and self._door.is_open(scope["path"]):
            scope[SCOPE_KEY] = NOBODY
            return
        key_id = self._door.key_id(scope) if self._door else None
        ring = self._accounts.ring
        key = ring.find(_shown_key(scope)) if key_id is None else ring.find_by_id(key_id)
        caller = scope[SCOPE_KEY] = key.caller
        wanted = "use" if self._is_for_use(scope["path"]) else "admin"
        if wanted not in caller.scopes:
            what = f"this address needs a key with the scope {wanted}"
            raise Forbidden(what + (", or does not exist" if wanted == "admin" else ""))
        leaving.enter_context(self._accounts.limiter.request(key))

    def _is_for_use(self, path: str) -> bool:
        is_page_for_use = self._door is not None and self._door.is_for_use(path)
        return path in USE_PATHS or path.startswith(USE_PREFIXES) or is_page_for_use


def _shown_key(scope: ConnectionScope) -> str:
    """The key of a request. Raises Unauthorized where there is none, or where there are several that differ."""
    shown = set()
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            shown.add(value.strip())
        elif name == b"authorization":
            kind, _, key = value.partition(b" ")
            if kind.lower() != b"bearer":
                raise Unauthorized("only keys are accepted here", mend=_MEND)
            shown.add(key.strip())
    if len(shown) != 1:
        raise Unauthorized("there are several keys" if shown else "this needs a key", mend=_MEND)
    return str(shown.pop().decode("latin-1"))
