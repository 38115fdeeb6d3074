"""OpenAI's dialect: models, text completions, chat completions and embeddings; responses are in a file of their own."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import anyio
import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from atoll.adapters.store import StoredAdapter
from atoll.engine import FinishEvent
from atoll.errors import RequestInvalid
from atoll.server.caller import Caller, caller_of
from atoll.server.choices import Choices
from atoll.server.gateway import Gateway
from atoll.server.openai_bodies import ChatBody, CompletionBody, EmbeddingBody, num_texts
from atoll.server.openai_schema import (
    ChatCompletion,
    Completion,
    EmbeddingList,
    Model,
    ModelList,
    answers,
)
from atoll.server.openai_shapes import Head, LogprobWriter, usage
from atoll.server.openai_writers import ChatWriter, ChoiceWriter, TextWriter
from atoll.server.prepare import Ask
from atoll.server.prompts import TokenIds
from atoll.server.streaming import DONE, EventStreamResponse, frame, unless_disconnected
from atoll.text.token_text import token_text_of


class OpenAI:
    """The dialect's routes over one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._started = int(time.time())
        self.router = router = APIRouter(prefix="/v1", tags=["OpenAI"])
        router.get("/models", summary="The base model and the adapters", responses=answers(ModelList))(self.models)
        router.get("/models/{model_id:path}", summary="One of them", responses=answers(Model))(self.model)
        completions = answers(Completion, may_stream=True)
        router.post("/completions", summary="Complete prompts", responses=completions)(self.completions)
        chats = answers(ChatCompletion, may_stream=True)
        router.post("/chat/completions", summary="Answer a conversation", responses=chats)(self.chat)
        vectors = answers(EmbeddingList)
        router.post("/embeddings", summary="Turn texts into vectors", responses=vectors)(self.embeddings)

    async def models(self, request: Request) -> JSONResponse:
        """The base first, then the latest revision of every adapter in the store that belongs to it."""
        adapters = await anyio.to_thread.run_sync(self._gateway.preparer.adapters, caller_of(request))
        cards = [self._base_card(), *(self._card(adapter.name, adapter) for adapter in adapters)]
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, model_id: str, request: Request) -> JSONResponse:
        """An adapter by name or name@revision, or the base model."""
        if self._gateway.preparer.is_base(model_id):
            return JSONResponse(self._base_card())
        adapter = await anyio.to_thread.run_sync(self._gateway.preparer.adapter, model_id, None, caller_of(request))
        return JSONResponse(self._card(model_id, adapter))

    async def completions(self, body: CompletionBody, request: Request) -> Response:
        """Each `prompt` is completed as it is; `columns` fill the adapter's own template."""
        self._check_number(body.n, num_texts(body.prompt))  # before anything is made for each of them
        asks = body.asks()
        echoes = [self._echo(ask) for ask in asks for _ in range(body.n)] if body.echo else None
        writer = TextWriter(echoes, self._logprobs(body.logprobs is not None))
        head = Head("cmpl", "text_completion", body.model or self._gateway.base.name)
        return await self._answer(body, request, asks, head, writer)

    async def chat(self, body: ChatBody, request: Request) -> Response:
        """`messages` go through the base's chat template; `columns` fill the adapter's own."""
        self._check_number(body.n, 1)
        writer = ChatWriter(body.tool_use(), self._logprobs(body.logprobs))
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        head = Head("chatcmpl", kind, body.model or self._gateway.base.name)
        return await self._answer(body, request, body.asks(), head, writer)

    async def embeddings(self, body: EmbeddingBody, request: Request) -> Response:
        """The mean over a text of the last layer's hidden states, of length 1."""
        return await unless_disconnected(request, self._vectors(body, caller_of(request)))

    async def _answer(
        self, body: CompletionBody | ChatBody, request: Request, asks: Sequence[Ask], head: Head, writer: ChoiceWriter
    ) -> Response:
        caller = caller_of(request)
        if not body.stream:
            return await unless_disconnected(request, self._whole(asks, caller, body.n, head, writer))
        choices = await Choices.open(self._gateway, asks, caller, body.n, stream=True)
        frames = _frames(choices, head, writer, include_usage=body.stream_options.include_usage)
        return EventStreamResponse(choices, frames, _headers(choices))

    async def _whole(
        self, asks: Sequence[Ask], caller: Caller, per_prompt: int, head: Head, writer: ChoiceWriter
    ) -> Response:
        choices = await Choices.open(self._gateway, asks, caller, per_prompt, stream=False)
        try:
            collected = await choices.collect()
        finally:
            choices.close()
        content = head.with_choices([writer.whole(index, choice) for index, choice in enumerate(collected)])
        content["usage"] = usage([choice.finish for choice in collected], per_prompt)
        return JSONResponse(content, headers=_headers(choices))

    async def _vectors(self, body: EmbeddingBody, caller: Caller) -> Response:
        _check_at_most("the number of texts", num_texts(body.input), self._gateway.settings.max_prompts)
        asks = body.asks()
        choices = await Choices.open(self._gateway, asks, caller, stream=False)
        try:
            finishes = [choice.finish for choice in await choices.collect()]
        finally:
            choices.close()
        vectors = [_vector(finish.embedding, body.encoding_format) for finish in finishes]
        num_tokens = sum(finish.num_prompt_tokens for finish in finishes)
        content = {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)],
            "model": body.model or self._gateway.base.name,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }
        return JSONResponse(content)

    def _check_number(self, n: int, num_prompts: int) -> None:
        settings = self._gateway.settings
        _check_at_most("n", n, settings.max_choices)
        _check_at_most("the number of answers", n * num_prompts, settings.max_prompts)

    def _echo(self, ask: Ask) -> str:
        if isinstance(ask.prompt, str):
            return ask.prompt
        if isinstance(ask.prompt, TokenIds):
            return token_text_of(self._gateway.base.tokenizer).text_of_all(ask.prompt.ids)
        raise RequestInvalid("echo is for prompts, not for columns", where="echo", mend="leave it out")

    def _logprobs(self, is_wanted: bool) -> LogprobWriter | None:
        return LogprobWriter(self._gateway.base) if is_wanted else None

    def _base_card(self) -> dict[str, Any]:
        name = self._gateway.base.name
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "atoll",
            "root": name,
            "parent": None,
            "columns": None,
        }

    def _card(self, model_id: str, adapter: StoredAdapter) -> dict[str, Any]:
        """`root` names the exact revision, `parent` the base model, `columns` what its template takes."""
        columns = list(adapter.contract.prompt.columns) if adapter.contract else None
        fields = {"id": model_id, "root": adapter.id, "parent": self._gateway.base.name, "columns": columns}
        return self._base_card() | fields


async def _frames(
    choices: Choices, head: Head, writer: ChoiceWriter, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    # With include_usage every other chunk says that it has none, as OpenAI's do.
    no_usage: dict[str, Any] = {"usage": None} if include_usage else {}
    finishes: dict[int, FinishEvent] = {}
    async for index, event in choices.events():
        for chunk in writer.chunks(index, event):
            yield frame(head.with_choices([chunk]) | no_usage)
        if isinstance(event, FinishEvent):
            finishes[index] = event
    if include_usage:
        in_order = [finishes[index] for index in sorted(finishes)]
        yield frame(head.with_choices([]) | {"usage": usage(in_order, choices.per_prompt)})
    yield DONE


def _headers(choices: Choices) -> dict[str, str]:
    """Tells a client whose columns were longer than the adapter's contract allows."""
    return {"x-atoll-cut-tokens": str(choices.num_cut_tokens)} if choices.num_cut_tokens else {}


def _check_at_most(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise RequestInvalid(f"{what} is {count}", where="n", mend=f"it may be at most {limit}")


def _vector(values: Sequence[float], encoding_format: str) -> list[float] | str:
    """A vector of length 1, as OpenAI's are, in 32 bits."""
    vector = np.asarray(values, np.float64)
    vector = (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype("<f4")
    return base64.b64encode(vector.tobytes()).decode() if encoding_format == "base64" else vector.tolist()
