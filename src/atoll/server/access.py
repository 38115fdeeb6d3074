"""The outermost layer: one log line for each request, none of its words; and how many requests run."""

from __future__ import annotations

import time
import traceback
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from atoll.errors import AtollError, Unavailable
from atoll.log import get_logger
from atoll.server.caller import SCOPE_KEY, Caller
from atoll.server.errors import error_response
from atoll.server.meter import Spent
from atoll.server.noted import NotedSend

logger = get_logger(__name__)

HEALTH_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
_CLIENT_LEFT = 499


@dataclass
class _Work:
    """What the engine did for one HTTP request."""

    adapter: str = ""
    num_requests: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_new_tokens: int = 0


_work: ContextVar[_Work | None] = ContextVar("atoll_work", default=None)


def note(spent: Spent) -> None:
    """Add a request of the engine to the log line of the HTTP request that is being answered."""
    work = _work.get()
    if work is not None:
        work.adapter = spent.adapter
        work.num_requests += 1
        work.num_prompt_tokens += spent.num_prompt_tokens
        work.num_cached_tokens += spent.num_cached_tokens
        work.num_new_tokens += spent.num_new_tokens


class Lifecycle:
    """How many HTTP requests run, and whether the server is about to end. Belongs to the event loop."""

    def __init__(self) -> None:
        self.num_running = 0
        self.is_draining = False


class Access:
    """ASGI middleware: logs, counts, refuses new work while the server drains, and answers what nobody else caught.

    An unexpected error is logged by its type and place alone: its message may quote a prompt.
    """

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app = app
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        noted = NotedSend(send)
        work = _Work()
        token = _work.set(work)
        started_s = time.perf_counter()
        self._lifecycle.num_running += 1
        try:
            if self._lifecycle.is_draining and scope["path"] not in HEALTH_PATHS:
                error = Unavailable("the server is stopping", mend="ask another one, or try again later")
                await error_response(scope["path"], error)(scope, receive, noted)
            else:
                await self._app(scope, receive, noted)
        except Exception as error:
            logger.error("a request broke: %s", _place(error))
            if noted.status is None:
                await error_response(scope["path"], AtollError(type(error).__name__))(scope, receive, noted)
        finally:
            self._lifecycle.num_running -= 1
            _work.reset(token)
            _log(scope, noted.status, time.perf_counter() - started_s, work)


def _log(scope: Scope, status: int | None, seconds: float, work: _Work) -> None:
    if scope["path"] in HEALTH_PATHS and status == 200:
        return  # probes come every few seconds and say nothing
    caller: Caller | None = scope.get(SCOPE_KEY)
    facts: dict[str, Any] = {
        "method": scope["method"],
        "route": route_template(scope),
        "status": _CLIENT_LEFT if status is None else status,
        "seconds": round(seconds, 6),
    }
    if caller is not None and caller.key_id:
        facts |= {"key_id": caller.key_id, "tenant": caller.tenant}
    if work.num_requests:
        facts |= {
            "adapter": work.adapter,
            "num_prompt_tokens": work.num_prompt_tokens,
            "num_cached_tokens": work.num_cached_tokens,
            "num_new_tokens": work.num_new_tokens,
        }
    logger.info("request", extra=facts)


def route_template(scope: Scope) -> str:
    """The address as the application declares it, never as the client wrote it; "-" where there is none."""
    return str(getattr(scope.get("route"), "path", "-"))


def _place(error: BaseException) -> str:
    """The type of an error and where it came from, innermost first."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    kind = type(error)
    reason = f" {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
    places = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return f"{kind.__module__}.{kind.__qualname__}{reason} at {places}"
