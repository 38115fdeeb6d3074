"""What an operator sees: metrics by any name, the dashboard over a real Prometheus, and the state as JSON."""

from __future__ import annotations

import json
import math
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from atoll.server.metrics import ServerMetrics
from atoll.server.settings import ServerSettings
from support.engines import greedy_request
from support.prometheus import Prometheus, binary, scraping
from support.servers import Served, samples, served_world, wait_until

OPS = Path(__file__).parents[2] / "ops"
DASHBOARD = json.loads((OPS / "grafana" / "atoll.json").read_text())
RULES = OPS / "prometheus" / "atoll.rules.yml"


def generate(served: Served, adapter: str = "", num_tokens: int = 3, prompt: str = "x", **parameters: Any) -> int:
    wanted = {"adapter_id": adapter, "max_new_tokens": num_tokens, "ignore_eos_token": True} | parameters
    return httpx.post(f"{served.url}/generate", json={"inputs": prompt, "parameters": wanted}).status_code


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of this module alone: two slots, so that three adapters push each other out."""
    folder = tmp_path_factory.mktemp("watched")
    settings = ServerSettings(adapter_cache=folder / "cache")
    with served_world(folder, settings=settings, num_slots=2) as served:
        yield served


def test_latencies_tokens_and_adapters_are_counted(tmp_path: Path) -> None:
    with served_world(tmp_path, num_slots=2) as served:
        prompt = "The quick brown fox jumps over the lazy dog. " * 3
        for name in ("alpha", "beta", "gamma", "alpha"):
            assert generate(served, name, num_tokens=4, prompt=prompt) == 200
        found = samples(served)
        stats = served.engine.stats()
    assert found["atoll_inter_token_seconds_count"] == 4 * 3
    for name in ("queue", "time_to_first_token", "request"):
        assert found[f"atoll_{name}_seconds_count"] == 4
    assert found["atoll_request_seconds_sum"] >= found["atoll_time_to_first_token_seconds_sum"] > 0
    assert found["lorax_request_inference_duration_count"] == found["lorax_request_validation_duration_count"] == 4
    assert 0 < found["lorax_request_validation_duration_sum"] < 4 * 20
    num_prompt = found["atoll_tokens_total,adapter=alpha,kind=prompt"]
    assert 0 < found["atoll_tokens_total,adapter=alpha,kind=cached"] < num_prompt, "the second found the first's blocks"
    assert found["atoll_tokens_total,adapter=beta,kind=cached"] == 0
    assert found["atoll_prefix_tokens_found_total"] == found["atoll_tokens_total,adapter=alpha,kind=cached"]
    assert found["atoll_prefix_tokens_total"] == 2 * num_prompt
    assert found["atoll_computed_tokens_total"] == stats.num_computed_tokens
    assert found["atoll_generated_tokens_total"] == 16
    assert found["atoll_slots"] == found["atoll_resident_adapters"] == 2
    assert found["atoll_adapter_loads_total"] == stats.tiers.num_loads == 4
    assert found["atoll_adapter_evictions_total,tier=device"] == 2
    assert found["atoll_adapter_lookups_total,tier=disk"] == 3
    assert found["atoll_adapter_lookups_total,tier=host"] == 1
    assert found["atoll_adapter_load_seconds_total,stage=read"] > 0
    assert found["atoll_host_adapters"] == 3
    assert found["atoll_kv_use_ratio"] == 0
    assert 0 < found["atoll_kv_blocks_cached"] <= found["atoll_kv_blocks_free"]


def test_every_mix_has_the_same_label(tmp_path: Path) -> None:
    with served_world(tmp_path, settings=ServerSettings(adapter_cache=tmp_path / "cache")) as served:
        for weight in (0.5, 0.75):
            mix = {"ids": ["alpha", "beta"], "weights": [1.0, weight], "merge_strategy": "linear"}
            assert generate(served, merged_adapters=mix) == 200
        found = samples(served)
    assert found["atoll_requests_total,adapter=merged,outcome=ok"] == 2


def lora_info(served: Served) -> dict[str, str]:
    text = httpx.get(f"{served.url}/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    (sample,) = families["lora_requests_info"].samples
    assert abs(sample.value - time.time()) < 60
    return sample.labels


def test_the_gauge_and_the_state_name_running_and_waiting_adapters(tmp_path: Path) -> None:
    """With one place, what does not run waits. The step thread is held at every token, so that nothing ends."""
    gate = threading.Semaphore(0)
    with served_world(tmp_path, num_slots=2, max_num_requests=1) as served:
        assert [generate(served, name) for name in ("alpha", "beta")] == [200, 200]
        idle = {"max_lora": "2", "running_lora_adapters": "", "waiting_lora_adapters": ""}
        assert lora_info(served) == idle
        for name in ("alpha", "beta"):
            request = greedy_request((5, 6, 7), 40, served.world.adapters[name])
            served.engine.submit(replace(request, on_event=lambda event: gate.acquire(timeout=20)))

        def is_seen() -> bool:
            gate.release()
            return lora_info(served)["waiting_lora_adapters"] == "beta"

        wait_until(is_seen)
        assert lora_info(served)["running_lora_adapters"] == "alpha"
        assert samples(served)["atoll_kv_use_ratio"] > 0
        state = httpx.get(f"{served.url}/atoll/state").json()
        assert state["requests"]["running_by_adapter"] == {"alpha": 1}
        assert state["requests"]["waiting_by_adapter"] == {"beta": 1}
        held = {adapter["id"]: adapter for adapter in state["adapters"]}
        assert {"tier": "device", "running": 1, "waiting": 0}.items() <= held["alpha@1"].items()
        assert {"tier": "device", "running": 0, "waiting": 1}.items() <= held["beta@1"].items()
        gate.release(1000)
        wait_until(lambda: lora_info(served) == idle)


def test_metrics_that_nobody_uses_cost_no_labels() -> None:
    from atoll.engine import EngineStats

    text = ServerMetrics(EngineStats, 4).render().decode()
    assert "adapter=" not in text
    assert len(text) < 30_000


def queries() -> list[str]:
    """Each query of the dashboard, with its variables filled in as Grafana would."""
    filled = {"$job": "atoll", "$instance": ".*", "$__rate_interval": "20s"}
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    for name, value in filled.items():
        found = [expression.replace(name, value) for expression in found]
    return found


def test_every_query_of_the_dashboard_returns_data(watched: Served, tmp_path: Path) -> None:
    """Traffic runs until all queries have numbers; a query that has none after a minute is one about nothing."""
    missing = set(queries())
    assert len(missing) > 30
    with scraping(tmp_path, watched.url, RULES) as prometheus:

        def all_have_data() -> bool:
            for name in ("", "alpha", "beta", "gamma", "nobody"):
                assert generate(watched, name, prompt="The quick brown fox jumps over the lazy dog.") in (200, 424)
            missing.difference_update({query for query in missing if has_numbers(prometheus, query)})
            return not missing

        try:
            wait_until(all_have_data, timeout_s=60)
        except AssertionError:
            pytest.fail(f"no data for {sorted(missing)}")
        assert len(current_rules(prometheus)) == RULES.read_text().count("- alert:")
        wait_until(lambda: all(rule["health"] == "ok" for rule in current_rules(prometheus)))


def current_rules(prometheus: Prometheus) -> list[Any]:
    return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]


def has_numbers(prometheus: Prometheus, query: str) -> bool:
    return any(not math.isnan(float(sample["value"][1])) for sample in prometheus.query(query))


def test_rules_and_configuration_are_what_prometheus_accepts() -> None:
    for kind, path in (("rules", RULES), ("config", OPS / "prometheus" / "prometheus.yml")):
        checked = subprocess.run([binary("promtool"), "check", kind, path], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_rules_and_documents_name_metrics_that_exist(watched: Served) -> None:
    assert generate(watched) == 200
    assert generate(watched, "nobody") == 424
    known = {re.sub(r",.*", "", name) for name in samples(watched)}
    docs = OPS.parent / "docs" / "observability.md"
    for path in (RULES, OPS / "grafana" / "atoll.json", docs):
        named = set(re.findall(r"\b(?:atoll|lorax)_[a-z_]+", path.read_text()))
        families = {re.sub(r"_(?:bucket|count|sum)$", "", name) for name in known}
        assert named <= known | families, (path, named - known - families)


def test_the_dashboard_is_whole() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["type"] == "row" or panel["targets"]
