"""Errors as each dialect writes them: LoRAX's `{error, error_type}` and OpenAI's `{"error": {...}}`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from atoll.errors import AdapterInvalid, AdapterNotFound, AtollError, NotFound, Overloaded, RequestInvalid, UsageError
from atoll.log import get_logger

logger = get_logger(__name__)

RETRY_AFTER_S = "1"
_CLIENT_CLOSED_REQUEST = 499


class BodyTooLargeError(UsageError):
    """The request's body is larger than the server reads."""

    http_status = 413
    code = "request_too_large"


class InterruptedRequestError(AtollError):
    """The server stopped a request before it was answered."""

    code = "interrupted"


class _MethodNotAllowedError(UsageError):
    http_status = 405
    code = "method_not_allowed"


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error in the dialect of its path."""

    async def on_error(request: Request, error: Exception) -> Response:
        return error_response(request.scope["path"], to_atoll_error(error))

    async def on_disconnect(request: Request, error: Exception) -> Response:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)  # nobody reads it

    for kind in (AtollError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(ClientDisconnect, on_disconnect)


def error_response(path: str, error: AtollError) -> JSONResponse:
    """The whole answer to a request that failed."""
    status, body = error_body(path, error)
    headers = {"Retry-After": RETRY_AFTER_S} if status == Overloaded.http_status else None
    return JSONResponse(body, status_code=status, headers=headers)


def error_body(path: str, error: AtollError) -> tuple[int, dict[str, Any]]:
    """HTTP status and JSON body in the dialect of a path; the body also serves inside a stream."""
    return _openai(error) if path.startswith("/v1/") else _lorax(error)


def _lorax(error: AtollError) -> tuple[int, dict[str, Any]]:
    status, error_type = 500, "incomplete_generation"
    if isinstance(error, AdapterNotFound | AdapterInvalid):
        status, error_type = 424, "generation"
    elif isinstance(error, Overloaded):
        status, error_type = 429, "overloaded"
    elif isinstance(error, NotFound | BodyTooLargeError | _MethodNotAllowedError):
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
        return _from_validation(error.errors())
    if isinstance(error, HTTPException):
        if error.status_code == 404:
            return NotFound("there is no such address", mend="see /openapi.json for those that there are")
        if error.status_code == 405:
            return _MethodNotAllowedError("this address does not take this method", mend="see /openapi.json")
        return UsageError(str(error.detail))
    # Starlette raises it again after this answer, so the server's log has the traceback.
    return AtollError(type(error).__name__)


def _from_validation(errors: Sequence[Any]) -> RequestInvalid:
    first = errors[0]
    # Some keys are numbers, and a union's own names stand in the path: only what the client wrote is of use to it.
    path = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return RequestInvalid("the body is not valid JSON", why=first["ctx"]["error"])
    if not path and first["type"] in ("missing", "model_attributes_type"):
        mend = "send one with the header Content-Type: application/json"
        return RequestInvalid("the body is not a JSON object", mend=mend)
    name = ".".join(path) or "body"
    if first["type"] == "extra_forbidden":
        mend = "leave it out: a parameter that has no effect is never accepted"
        return RequestInvalid(f"the parameter {name!r} is not known", where=name, mend=mend)
    return RequestInvalid(f"{name}: {first['msg']}", where=name)
