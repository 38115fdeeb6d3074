"""Traces: one span for a request in a collector's hands, with what it took and none of its words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from atoll.adapters.catalog import AdapterCatalog
from atoll.server.app import create_app
from atoll.server.tracing import Tracing
from support.engines import make_world
from support.listening import listening
from support.servers import publish_contracts, serving

CANARY = "canary-in-the-prompt"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"


class Collector:
    """What a collector was sent, by OTLP over HTTP."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.url = ""

    def spans(self) -> list[Any]:
        found = []
        for body in self.bodies:
            request = ExportTraceServiceRequest.FromString(body)
            found += [s for resource in request.resource_spans for scope in resource.scope_spans for s in scope.spans]
        return found


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collector.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with listening(Handler) as collector.url:
        yield collector


def attributes(span: Any) -> dict[str, Any]:
    return {item.key: plain(item.value) for item in span.attributes}


def plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [plain(item) for item in found.values] if kind == "array_value" else found


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The spans of some requests, by their names."""
    folder = tmp_path_factory.mktemp("traced")
    world = make_world(folder)
    catalog = AdapterCatalog(publish_contracts(world, folder))
    with collecting() as collector, world.engine() as engine:
        tracing = Tracing(collector.url)
        with serving(create_app(engine, engine.base, catalog, tracing=tracing)) as url, httpx.Client() as client:
            parent = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
            parameters = {"adapter_id": "alpha", "max_new_tokens": 3, "ignore_eos_token": True, "seed": 2**64 - 1}
            body = {"inputs": CANARY, "parameters": parameters | {"temperature": 0.5, "stop": [CANARY]}}
            assert client.post(f"{url}/generate", json=body, headers=parent).status_code == 200
            chat = {"model": "beta", "messages": [{"role": "user", "content": CANARY}], "max_tokens": 4}
            assert client.post(f"{url}/v1/chat/completions", json=chat | {"stream": True}).status_code == 200
            assert client.post(f"{url}/generate", json={"inputs": 1}).status_code == 422
            unknown = {"inputs": CANARY, "parameters": {"adapter_id": CANARY}}
            assert client.post(f"{url}/generate", json=unknown).status_code == 424
            assert client.get(f"{url}/{CANARY}").status_code == 404
            assert client.get(f"{url}/health").status_code == 200
            assert client.get(f"{url}/metrics").status_code == 200
        tracing.close()
        spans: dict[str, list[Any]] = {}
        for span in collector.spans():
            spans.setdefault(span.name, []).append(span)
        assert not any(CANARY.encode() in sent for sent in collector.bodies)
    return spans


def test_a_span_says_what_was_asked_for_and_what_it_took(traced: dict[str, list[Any]]) -> None:
    (span,) = traced["text_completion alpha@1"]
    found = attributes(span)
    assert {
        "http.request.method": "POST",
        "http.route": "/generate",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "atoll",
        "gen_ai.request.model": "alpha@1",
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.output_tokens": 3,
    }.items() <= found.items()
    assert found["gen_ai.usage.input_tokens"] > 0
    assert found["gen_ai.latency.e2e"] >= found["gen_ai.latency.time_to_first_token"] > 0
    assert "gen_ai.request.seed" not in found, "OTLP has no integer for this one"
    assert span.end_time_unix_nano > span.start_time_unix_nano


def test_a_client_s_trace_is_continued(traced: dict[str, list[Any]]) -> None:
    (span,) = traced["text_completion alpha@1"]
    assert span.trace_id.hex() == TRACE_ID
    assert span.parent_span_id.hex() == PARENT_ID
    (other,) = traced["chat beta@1"]
    assert other.parent_span_id == b""


def test_a_stream_has_its_tokens(traced: dict[str, list[Any]]) -> None:
    found = attributes(traced["chat beta@1"][0])
    assert found["http.route"] == "/v1/chat/completions"
    assert 1 <= found["gen_ai.usage.output_tokens"] <= 4


def test_requests_that_fail_have_spans_and_probes_have_none(traced: dict[str, list[Any]]) -> None:
    statuses = [attributes(span)["http.response.status_code"] for span in traced["POST /generate"]]
    assert sorted(statuses) == [422, 424]
    assert [attributes(span)["http.response.status_code"] for span in traced["GET -"]] == [404]
    assert sum(map(len, traced.values())) == 5


def test_a_collector_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    with collecting() as collector:
        url = collector.url  # nobody listens there afterwards
    world = make_world(tmp_path)
    with world.engine() as engine:
        app = create_app(engine, engine.base, AdapterCatalog(publish_contracts(world, tmp_path)), tracing=Tracing(url))
        with serving(app) as server:
            body = {"inputs": "x", "parameters": {"max_new_tokens": 2}}
            assert [httpx.post(f"{server}/generate", json=body).status_code for _ in range(3)] == [200] * 3


def test_without_traces_nothing_that_makes_or_sends_them_is_imported() -> None:
    """OpenTelemetry's bare interface may be: other libraries look for it."""
    kinds = ("opentelemetry.sdk", "opentelemetry.exporter", "google.protobuf")
    code = f"import sys, atoll.server.app; print([m for m in sys.modules if m.startswith({kinds})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
