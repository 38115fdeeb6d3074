"""Errors as each dialect writes them: LoRAX's `{error, error_type}` and OpenAI's `{"error": {...}}`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from atoll.adapters.addresses import SourceUnavailable
from atoll.errors import (
    AdapterInvalid,
    AdapterNotFound,
    AtollError,
    Forbidden,
    NotFound,
    Overloaded,
    RequestInvalid,
    Unauthorized,
    Unavailable,
    UsageError,
)
from atoll.log import get_logger

logger = get_logger(__name__)

COMMON_STATUSES = {
    401: "No key, or an unknown one",
    403: "The key may not do this",
    408: "The body did not come in time",
    413: "The body is too large",
    429: "The server is overloaded, or the key's limit is reached",
}
"""Errors that both dialects answer alike, for the OpenAPI schema."""

CLIENT_CLOSED_REQUEST = 499


class BodyTooLargeError(UsageError):
    """The request's body is larger than the server reads."""

    http_status = 413
    code = "request_too_large"


class HeadTooLargeError(UsageError):
    """The request has too many headers, or too long ones."""

    http_status = 431
    code = "headers_too_large"


class SlowBodyError(UsageError):
    """The request's body did not come in time."""

    http_status = 408
    code = "request_timeout"


class InterruptedRequestError(AtollError):
    """The server stopped a request before it was answered."""

    http_status = 503
    code = "interrupted"


class _MethodNotAllowedError(UsageError):
    http_status = 405
    code = "method_not_allowed"
    allowed = ""
    """The methods that the address takes, as the header `Allow` has them."""


# LoRAX has one status for what is wrong with a request; these are about more than the request.
_ABOUT_THE_CONNECTION = BodyTooLargeError | SlowBodyError | HeadTooLargeError
_SPOKEN_BY_STATUS = NotFound | Unauthorized | Forbidden | _MethodNotAllowedError | _ABOUT_THE_CONNECTION


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error in the dialect of its path."""

    async def on_error(request: Request, error: Exception) -> Response:
        told = to_atoll_error(error)
        if isinstance(told, _MethodNotAllowedError):
            told.allowed = _allowed_methods(app, request.scope)
        return error_response(request.scope["path"], told)

    async def on_disconnect(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)  # nobody reads it

    for kind in (AtollError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(ClientDisconnect, on_disconnect)


def _allowed_methods(app: FastAPI, scope: Scope) -> str:
    """For the header `Allow`. Starlette tells those of one route, but an address may have several."""
    found = [
        method
        for method in ("DELETE", "GET", "PATCH", "POST", "PUT")
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in app.routes)
    ]
    return ", ".join(found)


def error_response(path: str, error: AtollError) -> JSONResponse:
    """The whole answer to a request that failed."""
    status, body = error_body(path, error)
    return JSONResponse(body, status_code=status, headers=_headers(error))


def error_body(path: str, error: AtollError) -> tuple[int, dict[str, Any]]:
    """HTTP status and JSON body in the dialect of a path; the body also serves inside a stream."""
    if path.startswith("/v1/"):
        return _openai(error)
    status, body = _lorax(error)
    if path.startswith("/ui/") and isinstance(error, AdapterNotFound):
        status = error.http_status  # 424 is LoRAX's alone
    return status, body


def _headers(error: AtollError) -> dict[str, str] | None:
    if isinstance(error, Overloaded | Unavailable):
        return {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, _ABOUT_THE_CONNECTION):
        return {"Connection": "close"}  # what the client still sends is no new request
    if isinstance(error, _MethodNotAllowedError):
        return {"Allow": error.allowed}
    return {"WWW-Authenticate": 'Bearer realm="atoll"'} if isinstance(error, Unauthorized) else None


def _lorax(error: AtollError) -> tuple[int, dict[str, Any]]:
    status, error_type = 500, "incomplete_generation"
    if isinstance(error, AdapterNotFound | AdapterInvalid | SourceUnavailable):
        status, error_type = 424, "generation"
    elif isinstance(error, Overloaded):
        status, error_type = 429, "overloaded"
    elif isinstance(error, Unavailable):
        status, error_type = error.http_status, "overloaded"
    elif isinstance(error, _SPOKEN_BY_STATUS):
        status, error_type = error.http_status, "validation"
    elif error.http_status < 500:
        status, error_type = 422, "validation"
    return status, {"error": _message(error), "error_type": error_type}


def _openai(error: AtollError) -> tuple[int, dict[str, Any]]:
    # OpenAI's clients know no 422: whatever the request can mend is a 400.
    status = 400 if error.http_status == 422 else error.http_status
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    param = error.where if isinstance(error, RequestInvalid) else None
    if isinstance(error, AdapterNotFound):
        param = "model"
    return status, {"error": {"message": _message(error), "type": kind, "param": param, "code": error.code}}


def _message(error: AtollError) -> str:
    """One line for a client. Places are left out: they may be paths of this machine. So are causes of server errors."""
    if error.http_status >= 500 and error.code == AtollError.code:
        return "the server failed to answer this request; its log says why"
    text = error.what
    if error.why and not isinstance(error, NotFound):
        text += f" ({error.why})"
    if error.mend:
        text += f"; {error.mend}"
    return text.encode(errors="backslashreplace").decode()  # half a surrogate pair in the request cannot be sent back


def to_atoll_error(error: Exception) -> AtollError:
    """What FastAPI and Starlette raise, as errors of our own tree."""
    if isinstance(error, AtollError):
        if error.http_status >= 500:
            logger.error("a request failed: %s", error)
        return error
    if isinstance(error, RequestValidationError):
        return from_validation(error.errors(), error.body)
    if isinstance(error, HTTPException):
        if error.status_code == 404:
            return NotFound("there is no such address", mend="see /openapi.json for those that there are")
        if error.status_code == 405:
            return _MethodNotAllowedError("this address does not take this method", mend="see /openapi.json")
        return UsageError(str(error.detail))
    # Starlette raises it again after this answer, so the server's log has the traceback.
    return AtollError(type(error).__name__)


def from_validation(errors: Sequence[Any], body: object) -> RequestInvalid:
    """What pydantic found wrong with a body, as one error that names the place."""
    # Where there were several kinds to choose from, the one that came furthest is what the client meant.
    first = max(errors, key=lambda error: len(_path(error, body)))
    path = _path(first, body)
    name = ".".join(path) or "body"
    if first["type"] == "extra_forbidden":
        mend = "leave it out: a parameter that has no effect is never accepted"
        return RequestInvalid(f"the parameter {name!r} is not known", where=name, mend=mend)
    return RequestInvalid(f"{name}: {first['msg']}", where=name)


def _path(error: Any, body: object) -> list[str]:
    """The place of an error in what the client wrote; pydantic's own path also names the kinds of a union."""
    parts = [part for part in error["loc"] if part != "body"]
    path = []
    value: Any = body
    for part in parts:
        is_key = isinstance(value, dict) and part in value
        if is_key or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            value = value[part]
            path.append(str(part))
    if error["type"] == "missing" and parts:
        path.append(str(parts[-1]))
    return path
