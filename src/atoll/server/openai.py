"""OpenAI's dialect: /v1/models, /v1/completions and /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import anyio
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from atoll.adapters.store import StoredAdapter
from atoll.engine import FinishEvent
from atoll.server.caller import Caller, caller_of
from atoll.server.gateway import EventStream, Gateway
from atoll.server.openai_bodies import ChatBody, CompletionBody
from atoll.server.streaming import DONE, EventStreamResponse, cut_header, frame, unless_disconnected


class OpenAI:
    """The dialect's routes over one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._started = int(time.time())
        self.router = APIRouter(prefix="/v1", tags=["OpenAI"])
        self.router.get("/models", summary="The base model and the adapters")(self.models)
        self.router.get("/models/{model_id:path}", summary="One of them")(self.model)
        self.router.post("/completions", summary="Complete a prompt")(self.completions)
        self.router.post("/chat/completions", summary="Answer a conversation")(self.chat)

    async def models(self, request: Request) -> dict[str, Any]:
        """The base first, then the latest revision of every adapter in the store that belongs to it."""
        adapters = await anyio.to_thread.run_sync(self._gateway.preparer.adapters, caller_of(request))
        cards = [self._base_card(), *(self._card(adapter.name, adapter) for adapter in adapters)]
        return {"object": "list", "data": cards}

    async def model(self, model_id: str, request: Request) -> dict[str, Any]:
        """An adapter by name or name@revision, or the base model."""
        if self._gateway.preparer.is_base(model_id):
            return self._base_card()
        adapter = await anyio.to_thread.run_sync(self._gateway.preparer.adapter, model_id, None, caller_of(request))
        return self._card(model_id, adapter)

    async def completions(self, body: CompletionBody, request: Request) -> Response:
        """`prompt` is completed as it is; `columns` fill the adapter's own template."""
        return await self._answer(body, request)

    async def chat(self, body: ChatBody, request: Request) -> Response:
        """`messages` go through the base's chat template; `columns` fill the adapter's own."""
        return await self._answer(body, request)

    async def _answer(self, body: CompletionBody | ChatBody, request: Request) -> Response:
        shape = _Shape(body.model or self._gateway.base.name, is_chat=isinstance(body, ChatBody))
        if body.stream:
            events = await self._gateway.open(body.ask(), caller_of(request), stream=True)
            frames = _frames(shape, events, include_usage=body.stream_options.include_usage)
            return EventStreamResponse(events, frames, cut_header(events))
        return await unless_disconnected(request, self._whole(shape, body, caller_of(request)))

    async def _whole(self, shape: _Shape, body: CompletionBody | ChatBody, caller: Caller) -> Response:
        events = await self._gateway.open(body.ask(), caller, stream=False)
        try:
            _, finish = await events.collect()
        finally:
            events.close()
        return JSONResponse(shape.whole(finish), headers=cut_header(events))

    def _base_card(self) -> dict[str, Any]:
        name = self._gateway.base.name
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "atoll",
            "root": name,
            "parent": None,
        }

    def _card(self, model_id: str, adapter: StoredAdapter) -> dict[str, Any]:
        """`root` names the exact revision, `parent` the base model."""
        return self._base_card() | {"id": model_id, "root": adapter.id, "parent": self._gateway.base.name}


@dataclass(frozen=True)
class _Shape:
    """How one answer is written: as a text completion or as a chat completion, whole or in chunks."""

    model: str
    is_chat: bool
    answer_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, finish: FinishEvent) -> dict[str, Any]:
        text = {"message": {"role": "assistant", "content": finish.text}} if self.is_chat else {"text": finish.text}
        kind = "chat.completion" if self.is_chat else "text_completion"
        choice = {"index": 0, **text, "logprobs": None, "finish_reason": finish.finish_reason}
        return self._head(kind) | {"choices": [choice], "usage": _usage(finish)}

    def chunk(self, text: str, finish_reason: str | None = None) -> dict[str, Any]:
        delta = {"delta": {"content": text} if text else {}} if self.is_chat else {"text": text}
        return self._chunk([{"index": 0, **delta, "logprobs": None, "finish_reason": finish_reason}])

    def opening(self) -> dict[str, Any]:
        """The first chunk of a chat: who speaks."""
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])

    def usage_chunk(self, finish: FinishEvent) -> dict[str, Any]:
        return self._chunk([]) | {"usage": _usage(finish)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._head("chat.completion.chunk" if self.is_chat else "text_completion") | {"choices": choices}

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {"id": f"{prefix}-{self.answer_id}", "object": kind, "created": self.created, "model": self.model}


async def _frames(shape: _Shape, events: EventStream, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
    # With include_usage every other chunk says that it has none, as OpenAI's do.
    usage: dict[str, Any] = {"usage": None} if include_usage else {}
    is_open = not shape.is_chat
    async for event in events:
        if not is_open:
            yield frame(shape.opening() | usage)
            is_open = True
        if isinstance(event, FinishEvent):
            yield frame(shape.chunk("", event.finish_reason) | usage)
            if include_usage:
                yield frame(shape.usage_chunk(event))
            yield DONE
        elif event.text:
            yield frame(shape.chunk(event.text) | usage)


def _usage(finish: FinishEvent) -> dict[str, int]:
    num_new = len(finish.token_ids)
    return {
        "prompt_tokens": finish.num_prompt_tokens,
        "completion_tokens": num_new,
        "total_tokens": finish.num_prompt_tokens + num_new,
    }
