"""What an operator looks at: health and metrics."""

from __future__ import annotations

from pathlib import Path

import httpx2 as httpx
from prometheus_client.parser import text_string_to_metric_families

from atoll.server.settings import ServerSettings
from support.servers import Served, served_world


def samples(served: Served) -> dict[str, float]:
    """Every sample by its name and labels, parsed as Prometheus does."""
    text = httpx.get(f"{served.url}/metrics").text
    return {
        sample.name + "".join(f",{key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


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
        "/v1/models",
        "/v1/models/{model_id}",
        "/v1/completions",
        "/v1/chat/completions",
        "/health",
        "/metrics",
    }
