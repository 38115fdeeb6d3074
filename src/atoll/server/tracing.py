"""OpenTelemetry traces: one span for each HTTP request: what was asked for, what it took, and none of its words.

Names of attributes are those of OpenTelemetry's conventions for generative AI, and vLLM's for the times that those
leave out. Without an endpoint nothing that makes or sends spans is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from atoll import __version__
from atoll.engine import FinishEvent, Request
from atoll.errors import UsageError
from atoll.server.access import HEALTH_PATHS, route_template
from atoll.server.noted import NotedSend

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

Value = str | int | float | bool | list[str]

_PROVIDER = "atoll"
_UNTRACED = HEALTH_PATHS | {"/metrics"}
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/embeddings": "embeddings",
    "/embed": "embeddings",
}
_GENERATING = frozenset({"/", "/invocations", "/generate", "/generate_stream", "/v1/completions"})


@dataclass
class _Answered:
    """What the engine did for one HTTP request: several of its own for several answers."""

    model: str = ""
    first: tuple[Request, FinishEvent] | None = None
    finish_reasons: list[str] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_new_tokens: int = 0


_answered: ContextVar[_Answered | None] = ContextVar("atoll_answered", default=None)


def note_finish(request: Request, finish: FinishEvent, base_model: str) -> None:
    """Add an answered request to the span of the HTTP request that it was for, if there is one."""
    answered = _answered.get()
    if answered is None:
        return
    if answered.first is None:
        answered.first = request, finish
        answered.model = request.adapter.id if request.adapter else base_model
    answered.finish_reasons.append(finish.finish_reason)
    answered.num_prompt_tokens += finish.num_prompt_tokens
    answered.num_cached_tokens += finish.num_cached_tokens
    answered.num_new_tokens += len(finish.token_ids)


class Tracing:
    """Where spans go. endpoint: a collector's address for OTLP over HTTP, with or without `/v1/traces`.

    Spans are sent by a thread of their own, and dropped when nobody takes them. Raises UsageError where the extra
    `tracing` is not installed.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise UsageError("traces need OpenTelemetry", why=str(error), mend="pip install 'atoll[tracing]'") from None
        url = endpoint.rstrip("/")
        exporter: SpanExporter = OTLPSpanExporter(url if url.endswith("/v1/traces") else f"{url}/v1/traces")
        resource = Resource.create({"service.name": "atoll", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("atoll", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def start(self, scope: Scope) -> Span:
        """The span of a request; it continues the trace that the client's `traceparent` names."""
        from opentelemetry.trace import SpanKind

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        attributes = {"http.request.method": scope["method"], "url.scheme": scope["scheme"]}
        context = self._propagator.extract(headers)
        return self._tracer.start_span(scope["method"], context=context, kind=SpanKind.SERVER, attributes=attributes)

    def close(self) -> None:
        """Send what is left, and stop."""
        self._provider.shutdown()


class TraceRequests:
    """ASGI middleware: a span around every request but health checks and scrapes."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNTRACED:
            await self._app(scope, receive, send)
            return
        span = self._tracing.start(scope)
        answered = _Answered()
        token = _answered.set(answered)
        noted = NotedSend(send)
        try:
            await self._app(scope, receive, noted)
        finally:
            _answered.reset(token)
            _end(span, scope, noted.status, answered)


def _end(span: Span, scope: Scope, status: int | None, answered: _Answered) -> None:
    from opentelemetry.trace import StatusCode

    route = route_template(scope)
    span.update_name(f"{scope['method']} {route}")
    span.set_attribute("http.route", route)
    if status is not None:
        span.set_attribute("http.response.status_code", status)
    if status is None or status >= 500:
        span.set_status(StatusCode.ERROR)
    if route in _GENERATING or route in _OPERATIONS:
        span.set_attributes(_attributes(_OPERATIONS.get(route, "text_completion"), answered))
        if answered.model:
            span.update_name(f"{_OPERATIONS.get(route, 'text_completion')} {answered.model}")
    span.end()


def _attributes(operation: str, answered: _Answered) -> Mapping[str, Value]:
    attributes: dict[str, Value] = {"gen_ai.operation.name": operation, "gen_ai.provider.name": _PROVIDER}
    if answered.first is None:
        return attributes
    request, finish = answered.first
    sampling = request.sampling
    wanted: dict[str, Value | None] = {
        "gen_ai.request.model": answered.model,
        "gen_ai.response.model": answered.model,
        "gen_ai.request.choice.count": len(answered.finish_reasons),
        "gen_ai.request.max_tokens": sampling.max_new_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.seed": _fitting(sampling.seed),
        "gen_ai.response.finish_reasons": answered.finish_reasons,
        "gen_ai.usage.input_tokens": answered.num_prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": answered.num_cached_tokens,
        "gen_ai.usage.output_tokens": answered.num_new_tokens,
        "gen_ai.latency.time_in_queue": finish.timings.queue_s,
        "gen_ai.latency.time_to_first_token": finish.timings.first_token_s,
        "gen_ai.latency.e2e": finish.timings.total_s,
    }
    return attributes | {name: value for name, value in wanted.items() if value is not None}


def _fitting(seed: int | None) -> int | None:
    """A seed as far as OTLP's integers, signed and of 64 bits, can hold it."""
    return seed if seed is not None and seed < 1 << 63 else None
