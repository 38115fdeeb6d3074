"""The quick way to endpoints that take one JSON body: all those that ask the engine for something."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from inspect import signature
from typing import Any, get_type_hints

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from atoll.errors import AtollError, RequestInvalid
from atoll.server.bodies import Body
from atoll.server.errors import CLIENT_CLOSED_REQUEST, error_response, from_validation, to_atoll_error

_Answer = Callable[[Request], Awaitable[Response]]


class BodyRoutes:
    """ASGI middleware: answers POSTs to those routes of `routers` whose endpoint takes a `body`, which is a Body.

    FastAPI declares these routes. To answer, it would go through all routes, look for parameters in the path, the query
    and the headers, for forms and for dependencies, which these endpoints do not have: four tenths of the server's work
    for a request. All else goes on to it.
    """

    def __init__(self, app: ASGIApp, routers: Iterable[APIRouter]) -> None:
        self._app = app
        self._answers: dict[str, tuple[APIRoute, _Answer]] = {}
        for router in routers:
            for route in router.routes:
                if isinstance(route, APIRoute) and "POST" in (route.methods or ()):
                    self._answers[route.path] = route, _answer(route.endpoint)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._answers.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        scope["route"], answer = found
        try:
            response = await answer(Request(scope, receive))
            await response(scope, receive, send)
        except AtollError as error:
            await error_response(scope["path"], to_atoll_error(error))(scope, receive, send)
        except ClientDisconnect:
            await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send)  # nobody reads it


def _answer(endpoint: Callable[..., Awaitable[Response]]) -> _Answer:
    body_type: type[Body] = get_type_hints(endpoint)["body"]
    takes_request = "request" in signature(endpoint).parameters

    async def answer(request: Request) -> Response:
        value = _object(await request.body(), request.headers.get("content-type", ""))
        try:
            body = body_type.model_validate(value)
        except ValidationError as error:
            raise from_validation(error.errors(include_url=False), value) from None
        return await (endpoint(body, request) if takes_request else endpoint(body))

    return answer


def _object(data: bytes, content_type: str) -> dict[str, Any]:
    try:
        value = json.loads(data) if _is_json(content_type) else None
    except (ValueError, RecursionError) as error:
        raise RequestInvalid("the body is not valid JSON", why=_reason(error)) from None
    if not isinstance(value, dict):
        mend = "send one with the header Content-Type: application/json"
        raise RequestInvalid("the body is not a JSON object", mend=mend)
    return value


def _is_json(content_type: str) -> bool:
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


def _reason(error: ValueError | RecursionError) -> str:
    """What is wrong, without the words of the body."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else "a number in it has too many digits"
