"""OpenAI's responses: one answer to a conversation, whole or as events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from atoll.engine import FinishEvent
from atoll.errors import AtollError
from atoll.server.caller import Caller, caller_of
from atoll.server.errors import error_body, to_atoll_error
from atoll.server.gateway import EventStream, Gateway
from atoll.server.openai_responses_bodies import ResponseBody
from atoll.server.openai_responses_writer import ResponseWriter
from atoll.server.openai_schema import ResponseAnswer, answers
from atoll.server.openai_shapes import LogprobWriter
from atoll.server.streaming import EventStreamResponse, unless_disconnected


class Responses:
    """The route over one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.router = APIRouter(prefix="/v1", tags=["OpenAI"])
        kinds = answers(ResponseAnswer, may_stream=True)
        self.router.post("/responses", summary="Answer a conversation, as items", responses=kinds)(self.respond)

    async def respond(self, body: ResponseBody, request: Request) -> Response:
        """The whole conversation is in the request; nothing is stored."""
        logprobs = LogprobWriter(self._gateway.base) if body.include or body.top_logprobs else None
        writer = ResponseWriter(self._told(body), body.tool_use().reader(), logprobs)
        if not body.stream:
            return await unless_disconnected(request, self._whole(body, caller_of(request), writer))
        events = await self._gateway.open(body.ask(), caller_of(request), stream=True)
        return EventStreamResponse(events, _frames(events, writer, request.scope["path"]), {})

    async def _whole(self, body: ResponseBody, caller: Caller, writer: ResponseWriter) -> Response:
        events = await self._gateway.open(body.ask(), caller, stream=False)
        try:
            tokens, finish = await events.collect()
        finally:
            events.close()
        for token in tokens:
            writer.push(token)
        writer.finish(finish)
        return _AsciiResponse(writer.response)

    def _told(self, body: ResponseBody) -> dict[str, Any]:
        """What an answer says of its request."""
        choice = body.tool_choice or "auto"
        wanted = body.model_dump(exclude_unset=True, by_alias=True, include={"text", "tools"})
        return {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "background": False,
            "instructions": body.instructions or None,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata,
            "model": body.model or self._gateway.base.name,
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": body.temperature,
            "text": wanted.get("text") or {"format": {"type": "text"}},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": wanted.get("tools", []),
            "top_logprobs": body.top_logprobs,
            "top_p": body.top_p,
            "truncation": "disabled",
        }


async def _frames(events: EventStream, writer: ResponseWriter, path: str) -> AsyncGenerator[bytes, None]:
    """A request that fails before its first token gets a plain error; later the error is an event of its own."""
    is_open = False
    try:
        async for event in events:
            contents = [] if is_open else writer.open()
            is_open = True
            contents += writer.finish(event) if isinstance(event, FinishEvent) else writer.push(event)
            for content in contents:
                yield _frame(content)
    except AtollError as error:
        if not is_open:
            raise
        message = error_body(path, to_atoll_error(error))[1]["error"]["message"]
        for content in writer.fail(message):
            yield _frame(content)


def _frame(content: dict[str, Any]) -> bytes:
    return f"event: {content['type']}\ndata: {_ascii(content)}\n\n".encode()


def _ascii(content: Any) -> str:
    # What the request says is said again, and it may hold half a surrogate pair, which is no UTF-8.
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


class _AsciiResponse(JSONResponse):
    def render(self, content: Any) -> bytes:
        return _ascii(content).encode()
