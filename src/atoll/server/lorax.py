"""LoRAX's dialect: /generate, /generate_stream, and / as its clients use it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter
from pydantic import ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from atoll.engine import FinishEvent, TokenEvent
from atoll.engine.request import MAX_LOGPROBS, MAX_SEED
from atoll.server.bodies import Body
from atoll.server.caller import Caller, caller_of
from atoll.server.gateway import EventStream, Gateway
from atoll.server.prepare import Ask
from atoll.server.prompts import Prompt, prompt_text
from atoll.server.streaming import EventStreamResponse, cut_header, frame, unless_disconnected

_FINISH_REASONS = {"length": "length", "eos": "eos_token", "stop_string": "stop_sequence"}


class Parameters(Body):
    """LoRAX's `parameters`; keys that LoRAX itself does not know are tolerated, as there."""

    model_config = ConfigDict(extra="ignore")
    not_implemented: ClassVar = {
        "api_token": "",
        "best_of": 1,
        "decoder_input_details": False,
        "frequency_penalty": 0,
        "merged_adapters": {},
        "presence_penalty": 0,
        "repetition_penalty": 1,
        "response_format": {},
        "truncate": 0,
        "typical_p": 1,
        "watermark": False,
    }

    adapter_id: str = ""
    """The adapter to answer with: name, name@revision, or a path with adapter_source local; empty for the base."""
    adapter_source: Literal["local"] | None = None
    """`local` for a path below one of the server's adapter roots; unset for the store."""
    do_sample: bool = False
    """Draw tokens by their probability; greedy without it, unless temperature, top_k or top_p say otherwise."""
    temperature: float | None = Field(default=None, ge=0)
    top_k: int | None = Field(default=None, gt=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    max_new_tokens: int | None = Field(default=None, gt=0)
    """Unset: what the adapter's contract says, else as many as fit."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    ignore_eos_token: bool = False
    apply_chat_template: bool = False
    """Send `inputs` as one user's message through the base's chat template."""
    return_full_text: bool = False
    """Put the prompt before the answer."""
    details: bool = False
    return_k_alternatives: int | None = Field(default=None, gt=0, le=MAX_LOGPROBS)

    @property
    def wanted_temperature(self) -> float | None:
        """LoRAX's rules: 0 is greedy; do_sample, top_k, top_p or a temperature other than 1 sample; else unset."""
        if self.temperature == 0:
            return 0.0
        draws = self.do_sample or self.top_k is not None or (self.top_p is not None and self.top_p < 1)
        if draws or self.temperature not in (None, 1):
            return 1.0 if self.temperature is None else self.temperature
        return None


class GenerateBody(Body):
    """A prompt and how to complete it."""

    model_config = ConfigDict(extra="ignore")

    inputs: Annotated[str, Field(min_length=1)] | dict[str, str]
    """The prompt; or the columns of the adapter's own template."""
    parameters: Parameters = Parameters()

    def ask(self) -> Ask:
        """The same, without dialect."""
        wanted = self.parameters
        prompt: Prompt = self.inputs
        if isinstance(prompt, str) and wanted.apply_chat_template:
            prompt = [{"role": "user", "content": prompt}]
        return Ask(
            prompt=prompt,
            adapter_id=wanted.adapter_id,
            adapter_source=wanted.adapter_source,
            max_new_tokens=wanted.max_new_tokens,
            stop=tuple(wanted.stop),
            temperature=wanted.wanted_temperature,
            top_p=wanted.top_p,
            top_k=wanted.top_k,
            seed=wanted.seed,
            ignore_eos=wanted.ignore_eos_token,
            num_alternatives=wanted.return_k_alternatives or 0,
            default_temperature=0.0,
        )


class RootBody(GenerateBody):
    """The body of POST /."""

    stream: bool = False


class Lorax:
    """The dialect's routes over one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.router = APIRouter(tags=["LoRAX"])
        self.router.post("/", summary="Complete a prompt, as lorax-client asks for it")(self.root)
        self.router.post("/generate", summary="Complete a prompt")(self.generate)
        self.router.post("/generate_stream", summary="Complete a prompt, token by token")(self.generate_stream)

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
        events = await self._gateway.open(body.ask(), caller_of(request), stream=True)
        return EventStreamResponse(events, self._frames(body, events), cut_header(events))

    async def _whole(self, body: GenerateBody, caller: Caller) -> tuple[dict[str, Any], dict[str, str]]:
        events = await self._gateway.open(body.ask(), caller, stream=False)
        try:
            tokens, finish = await events.collect()
        finally:
            events.close()
        content: dict[str, Any] = {"generated_text": self._text(body, events, finish), "details": None}
        if body.parameters.details:
            content["details"] = self._details(finish) | {
                "prefill": [],
                "tokens": [self._token(token) for token in tokens],
                "best_of_sequences": None,
            }
        return content, cut_header(events)

    async def _frames(self, body: GenerateBody, events: EventStream) -> AsyncGenerator[bytes, None]:
        """The last token's frame holds the end as well, so a token that may be the last waits for the next event."""
        held: TokenEvent | None = None
        num_tokens = 0
        async for event in events:
            if isinstance(event, FinishEvent):
                if held is not None:
                    details = self._details(event) if body.parameters.details else None
                    yield self._frame(held, text=self._text(body, events, event), details=details)
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
        return is_end or num_tokens == sampling.max_new_tokens or bool(sampling.stop)

    def _frame(self, token: TokenEvent, *, text: str | None = None, details: dict[str, Any] | None = None) -> bytes:
        return frame({"token": self._token(token), "generated_text": text, "details": details})

    def _text(self, body: GenerateBody, events: EventStream, finish: FinishEvent) -> str:
        if not body.parameters.return_full_text:
            return finish.text
        return prompt_text(self._gateway.base.tokenizer, body.inputs, events.request.adapter) + finish.text

    def _token(self, token: TokenEvent) -> dict[str, Any]:
        # Text that was held back may come with an end token: as a special token, clients would drop it.
        content: dict[str, Any] = {
            "id": token.token_id,
            "text": token.text,
            "logprob": token.logprob,
            "special": token.token_id in self._gateway.special_ids and not token.text,
            "skipped": False,
        }
        if token.top:
            decode = self._gateway.base.tokenizer.decode
            content["alternative_tokens"] = [
                {"id": token_id, "text": decode([token_id]), "logprob": logprob} for token_id, logprob in token.top
            ]
        return content

    @staticmethod
    def _details(finish: FinishEvent) -> dict[str, Any]:
        return {
            "finish_reason": _FINISH_REASONS[finish.stop_reason or "length"],
            "prompt_tokens": finish.num_prompt_tokens,
            "generated_tokens": len(finish.token_ids),
            "skipped_tokens": 0,
            "seed": finish.seed,
        }
