"""LoRAX's dialect: / as its clients use it, /generate, /generate_stream, /embed, /tokenize and /info."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

import anyio
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from atoll import __version__
from atoll.engine import FinishEvent, TokenEvent
from atoll.errors import RequestInvalid
from atoll.server.caller import Caller, caller_of
from atoll.server.gateway import EventStream, Gateway
from atoll.server.lorax_answers import Answer, AnswerWriter, result_headers
from atoll.server.lorax_bodies import EmbedBody, GenerateBody, RootBody, TokenizeBody
from atoll.server.lorax_schema import (
    ERRORS,
    HEALTH,
    STREAM,
    Embedding,
    Generated,
    Info,
    SimpleToken,
    answers,
)
from atoll.server.streaming import EventStreamResponse, cut_header, frame, unless_disconnected
from atoll.text.encoding import encoder_of

# Long texts are tokenised beside the event loop, few at a time: they compete with the steps for cores.
_NUM_TOKENIZING = 2


class Lorax:
    """The dialect's routes over one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._writer = AnswerWriter(gateway.base, gateway.special_ids)
        self._limiter = anyio.CapacityLimiter(_NUM_TOKENIZING)
        self.router = router = APIRouter(tags=["LoRAX"])
        lists = answers(list[Generated], may_stream=True)
        router.post("/", summary="Complete a prompt, as lorax-client asks for it", responses=lists)(self.root)
        router.post("/invocations", summary="The same as /, as SageMaker asks for it", responses=lists)(self.root)
        router.post("/generate", summary="Complete a prompt", responses=answers(Generated))(self.generate)
        router.post("/generate_stream", summary="Complete a prompt, token by token", responses=STREAM)(
            self.generate_stream
        )
        router.post("/embed", summary="Turn a text into a vector", responses=answers(Embedding))(self.embed)
        router.post("/tokenize", summary="Cut a text into tokens", responses=answers(list[SimpleToken]))(self.tokenize)
        router.get("/info", summary="The base model and the server's limits", responses=ERRORS)(self.info)
        for path in ("/", "/ping"):
            router.get(path, summary="Whether the engine runs", response_class=Response, responses=HEALTH)(self.health)

    async def root(self, body: RootBody, request: Request) -> Response:
        """Answers a list with one element, or a stream with `stream: true`."""
        if body.stream:
            return await self.generate_stream(body, request)
        content, headers = await unless_disconnected(request, self._whole(body, caller_of(request)))
        return JSONResponse([content], headers=headers)

    async def generate(self, body: GenerateBody, request: Request) -> Response:
        """Answers `{generated_text, details}`."""
        content, headers = await unless_disconnected(request, self._whole(body, caller_of(request)))
        return JSONResponse(content, headers=headers)

    async def generate_stream(self, body: GenerateBody, request: Request) -> Response:
        """One event for each token; the last one has the whole text and the details."""
        events = await self._gateway.open(body.stream_ask(), caller_of(request), stream=True)
        headers = self._writer.headers(body, events.request) | cut_header(events)
        return EventStreamResponse(events, self._frames(body, events), headers)

    async def embed(self, body: EmbedBody, request: Request) -> Response:
        """The mean over the text of the last layer's hidden states, of the base or with an adapter."""
        return await unless_disconnected(request, self._embedding(body, caller_of(request)))

    async def tokenize(self, body: TokenizeBody) -> Response:
        """The tokens of a raw prompt, as the other routes make them: special tokens are plain text."""
        return JSONResponse(await anyio.to_thread.run_sync(self._tokens, body, limiter=self._limiter))

    async def info(self) -> Info:
        """What LoRAX tells, but for the settings of its own scheduler."""
        base, settings = self._gateway.base, self._gateway.settings
        return Info(
            model_id=base.name,
            model_sha=base.digest,
            model_dtype=str(base.dtype),
            model_device_type=base.device.type,
            model_pipeline_tag="text-generation",
            max_concurrent_requests=settings.max_open_requests,
            max_best_of=settings.max_best_of,
            max_stop_sequences=settings.max_stop_strings,
            max_input_length=self._gateway.max_length - 1,
            max_total_tokens=self._gateway.max_length,
            version=__version__,
            sha=None,
            docker_label=None,
            request_logger_url=None,
        )

    async def health(self) -> Response:
        """Nothing but a status."""
        if self._gateway.is_alive:
            return Response()
        return JSONResponse({"error": "unhealthy", "error_type": "healthcheck"}, status_code=503)

    async def _whole(self, body: GenerateBody, caller: Caller) -> tuple[dict[str, Any], dict[str, str]]:
        started_s = time.perf_counter()
        count = self._num_answers(body)
        opened = await self._gateway.open_several(body.ask(), caller, count, stream=False)
        try:
            drawn = [Answer(*await events.collect()) for events in opened]
        finally:
            for events in opened:
                events.close()
        drawn.sort(key=lambda answer: answer.mean_logprob, reverse=True)
        request = opened[0].request
        headers = self._writer.headers(body, request) | cut_header(opened[0])
        content = self._writer.whole(body, request, drawn)
        total_s = time.perf_counter() - started_s
        validation_s = opened[0].validation_s
        return content, headers | result_headers(drawn[0].finish, validation_s=validation_s, total_s=total_s)

    def _num_answers(self, body: GenerateBody) -> int:
        limit, count = self._gateway.settings.max_best_of, body.parameters.num_answers
        if count > limit:
            raise RequestInvalid(f"best_of is {count}", where="best_of", mend=f"best_of must be at most {limit}")
        return count

    async def _embedding(self, body: EmbedBody, caller: Caller) -> Response:
        events = await self._gateway.open(body.ask(), caller, stream=False)
        try:
            _, finish = await events.collect()
        finally:
            events.close()
        return JSONResponse({"embeddings": finish.embedding}, headers=cut_header(events))

    def _tokens(self, body: TokenizeBody) -> list[dict[str, Any]]:
        text = body.inputs
        spans = encoder_of(self._gateway.base.tokenizer).spans(text, with_begin=body.add_special_tokens)
        return [
            {"id": token_id, "text": text[start:stop], "start": start, "stop": stop} for token_id, start, stop in spans
        ]

    async def _frames(self, body: GenerateBody, events: EventStream) -> AsyncGenerator[bytes, None]:
        """The last token's frame holds the end as well, so a token that may be the last waits for the next event."""
        held: TokenEvent | None = None
        num_tokens = 0
        async for event in events:
            if isinstance(event, FinishEvent):
                if held is not None:
                    details = self._writer.stream_details(event) if body.parameters.details else None
                    yield self._frame(held, self._writer.lead(body, events.request) + event.text, details)
                return
            if held is not None:
                yield self._frame(held)
            num_tokens += 1
            held = event
            if not self._may_be_last(events, event, num_tokens):
                yield self._frame(event)
                held = None

    def _may_be_last(self, events: EventStream, token: TokenEvent, num_tokens: int) -> bool:
        sampling = events.request.sampling
        is_end = token.token_id in self._gateway.base.end_ids and not sampling.ignore_eos
        # A stop string or a grammar may end the answer at any token.
        may_end = bool(sampling.stop) or events.request.constraint is not None
        return is_end or num_tokens == sampling.max_new_tokens or may_end

    def _frame(self, token: TokenEvent, text: str | None = None, details: dict[str, Any] | None = None) -> bytes:
        return frame({"token": self._writer.token(token), "generated_text": text, "details": details})
