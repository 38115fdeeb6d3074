"""What an operator looks at: health, metrics and the log."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2 as httpx
import pytest

from atoll.adapters.catalog import AdapterCatalog
from atoll.adapters.store import AdapterStore
from atoll.server.access import Lifecycle
from atoll.server.app import create_app
from atoll.server.settings import ServerSettings
from support.engines import make_world
from support.logs import captured_log
from support.servers import Served, samples, served_world, serving, wait_until


def generate(served: Served, adapter: str, num_tokens: int = 3) -> int:
    parameters = {"adapter_id": adapter, "max_new_tokens": num_tokens, "ignore_eos_token": True}
    return httpx.post(f"{served.url}/generate", json={"inputs": "x", "parameters": parameters}).status_code


def test_metrics_count_what_happened(tmp_path: Path) -> None:
    with served_world(tmp_path) as served:
        assert [generate(served, name) for name in ("", "alpha", "alpha", "nobody")] == [200, 200, 200, 424]
        assert generate(served, "alpha", num_tokens=-1) == 422
        found = samples(served)
        stats = served.engine.stats()
    assert found["atoll_requests_total,adapter=alpha,outcome=ok"] == 2
    assert found["atoll_requests_total,adapter=base,outcome=ok"] == 1
    assert found["atoll_tokens_total,adapter=alpha,kind=completion"] == 6
    assert found["atoll_tokens_total,adapter=alpha,kind=prompt"] == 2
    assert found["atoll_requests_refused_total,reason=model_not_found"] == 1
    assert found["atoll_time_to_first_token_seconds_count"] == 3
    assert 0 < found["atoll_time_to_first_token_seconds_sum"] < 60
    assert found["lorax_request_count"] == 4
    assert found["lorax_request_success"] == 3
    assert found["lorax_request_failure,err=validation"] == 1
    assert found["lorax_request_generated_tokens_sum"] == 9
    assert found["atoll_kv_blocks"] == found["atoll_kv_blocks_free"] == stats.num_blocks > 0
    assert found["atoll_resident_adapters"] == 1
    assert found["atoll_running_requests"] == found["lorax_queue_length"] == found["atoll_preemptions_total"] == 0


def test_labels_are_bounded(tmp_path: Path) -> None:
    with served_world(tmp_path, settings=ServerSettings(max_metric_adapters=2)) as served:
        for name in ("alpha", "beta", "gamma", "delta", "alpha"):
            assert generate(served, name) == 200
        counts = {key: value for key, value in samples(served).items() if key.startswith("atoll_requests_total")}
    assert counts == {
        "atoll_requests_total,adapter=alpha,outcome=ok": 2,
        "atoll_requests_total,adapter=beta,outcome=ok": 1,
        "atoll_requests_total,adapter=other,outcome=ok": 2,
    }


def test_the_schema_lists_every_address(served: Served) -> None:
    paths = httpx.get(f"{served.url}/openapi.json").json()["paths"]
    assert set(paths) == {
        "/",
        "/generate",
        "/generate_stream",
        "/invocations",
        "/embed",
        "/tokenize",
        "/info",
        "/ping",
        "/v1/models",
        "/v1/models/{model_id}",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/health",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/atoll/state",
    }


# ---- health


def test_readiness_follows_the_engine_and_the_end_of_the_server(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    lifecycle = Lifecycle()
    with world.engine() as engine:
        app = create_app(engine, engine.base, AdapterCatalog(AdapterStore(tmp_path / "store")), lifecycle=lifecycle)
        with serving(app) as url:

            def states() -> list[int]:
                return [httpx.get(f"{url}/health{name}").status_code for name in ("", "/live", "/ready")]

            assert states() == [200, 200, 200]
            lifecycle.is_draining = True
            assert states() == [200, 200, 503]
            refused = httpx.post(f"{url}/generate", json={"inputs": "x"})
            assert (refused.status_code, refused.json()["error_type"]) == (503, "overloaded")
            assert refused.headers["retry-after"] == "5"
            lifecycle.is_draining = False
            engine.close()
            assert states() == [503, 200, 503]


# ---- the log


def entries(log: io.StringIO, message: str = "request") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in log.getvalue().splitlines()]
    return [entry for entry in found if entry["message"].startswith(message)]


def test_every_request_is_one_line_with_its_work_and_without_its_words(tmp_path: Path) -> None:
    words = "kept-between-us"
    with captured_log(json_lines=True) as log, served_world(tmp_path) as served:
        parameters = {"adapter_id": "alpha", "max_new_tokens": 3, "ignore_eos_token": True}
        for path in ("/generate", "/generate_stream", "/"):
            answer = httpx.post(f"{served.url}{path}", json={"inputs": words, "parameters": parameters})
            assert answer.status_code == 200
        httpx.get(f"{served.url}/v1/models/{words}")
        httpx.get(f"{served.url}/{words}?{words}")
        httpx.post(f"{served.url}/v1/completions", json={"prompt": words, "max_tokens": words})
        httpx.get(f"{served.url}/health")
        wait_until(lambda: len(entries(log)) == 6)
    assert words not in log.getvalue()
    lines = entries(log)
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("POST", "/generate", 200),
        ("POST", "/generate_stream", 200),
        ("POST", "/", 200),
        ("GET", "/v1/models/{model_id:path}", 404),
        ("GET", "-", 404),
        ("POST", "/v1/completions", 400),
    ]
    for line in lines[:3]:
        assert line["adapter"] == "alpha"
        assert (line["num_prompt_tokens"] > 3, line["num_new_tokens"]) == (True, 3)
        assert 0 < line["seconds"] < 60


def test_a_client_that_leaves_is_logged_as_such(tmp_path: Path) -> None:
    with captured_log(json_lines=True) as log, served_world(tmp_path) as served:
        body = {"inputs": "x", "parameters": {"max_new_tokens": 400, "ignore_eos_token": True}}
        with httpx.stream("POST", f"{served.url}/generate_stream", json=body) as answer:
            next(answer.iter_lines())
        wait_until(lambda: entries(log))
    (line,) = entries(log)
    assert line["status"] == 200  # it had begun
    assert 1 <= line["num_new_tokens"] < 400


def test_an_error_that_nobody_expected_is_logged_by_its_place_and_not_by_its_words(tmp_path: Path) -> None:
    words = "kept-between-us"
    with captured_log() as log, served_world(tmp_path) as served:

        def fail(*_: object) -> None:
            raise RuntimeError(f"cannot do {words}")

        served.engine.submit = fail  # type: ignore[method-assign,assignment]
        answers = [
            httpx.post(f"{served.url}{path}", json=body)
            for path, body in [("/generate", {"inputs": words}), ("/v1/completions", {"prompt": words})]
        ]
        wait_until(lambda: log.getvalue().count("a request broke") == 2)
    assert [answer.status_code for answer in answers] == [500, 500]
    assert answers[0].json().keys() == {"error", "error_type"}
    assert answers[1].json()["error"]["type"] == "server_error"
    assert "RuntimeError at" in log.getvalue()
    assert "test_operation.py" in log.getvalue()
    for text in (log.getvalue(), *(answer.text for answer in answers)):
        assert words not in text


@pytest.mark.parametrize("json_lines", [False, True])
def test_no_request_forges_a_line(tmp_path: Path, json_lines: bool) -> None:
    forged = "x\n12:00:00 INFO server.access: forged\x1b[2J\u2028\x9b1m"
    with served_world(tmp_path) as served, captured_log(json_lines=json_lines) as log:
        httpx.post(f"{served.url}/generate", json={"inputs": forged, "parameters": {"adapter_id": forged}})
        httpx.get(f"{served.url}/v1/models/{quote(forged)}")
        httpx.request("GET", f"{served.url}/{quote(forged)}", headers={"User-Agent": "a\tforged"})
        httpx.post(f"{served.url}/generate", content=forged.encode(), headers={"Content-Type": "application/json"})
        wait_until(lambda: log.getvalue().count("request") >= 4)
    text = log.getvalue()
    assert "forged" not in text
    assert not {"\x1b", "\x9b", "\u2028", "\r"} & set(text)
    assert len(text.splitlines()) == text.count("\n") == 4


def test_the_api_can_be_read_in_a_browser_without_anything_from_elsewhere(served: Served) -> None:
    response = httpx.get(f"{served.url}/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    for part in ("POST /generate", "POST /v1/chat/completions", "parameters.adapter_id", "GET /metrics"):
        assert part in response.text
    assert "<script" not in response.text
    assert "http://" not in response.text
    assert "https://" not in response.text
