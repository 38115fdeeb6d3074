"""The engine's figures for Prometheus, read at the moment of the scrape."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from atoll.engine import EngineStats

_MAX_NAMES = 64


class EngineCollector(Collector):
    """Gauges and counters of one engine."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield from _request_gauges(stats)
        yield from _cache_metrics(stats)
        yield from _adapter_gauges(stats)
        yield from _adapter_counters(stats)
        yield _lora_info(stats)
        yield CounterMetricFamily(
            "atoll_preemptions", "Requests sent back for others' blocks or places.", stats.num_preemptions
        )
        yield CounterMetricFamily("atoll_steps", "Batches computed.", stats.num_steps)
        yield CounterMetricFamily(
            "atoll_computed_tokens", "Tokens computed, of prompts and of answers.", stats.num_computed_tokens
        )
        yield CounterMetricFamily("atoll_generated_tokens", "Tokens generated.", stats.num_generated_tokens)


def kv_use(stats: EngineStats) -> float:
    """The share of the KV blocks that requests hold, from 0 to 1; what is only cached does not count."""
    return 1 - stats.num_free_blocks / stats.num_blocks if stats.num_blocks else 0.0


def _request_gauges(stats: EngineStats) -> Iterator[Metric]:
    waiting, running = stats.num_waiting, stats.num_running
    yield GaugeMetricFamily("lorax_queue_length", "Requests that wait.", waiting)
    yield GaugeMetricFamily("lorax_batch_current_size", "Requests that run.", running)
    yield GaugeMetricFamily("atoll_waiting_requests", "Requests that wait for a place, blocks or an adapter.", waiting)
    yield GaugeMetricFamily("atoll_running_requests", "Requests that run.", running)
    yield GaugeMetricFamily("atoll_threads", "Threads of a step; fewer while others want the cores.", stats.num_threads)


def _cache_metrics(stats: EngineStats) -> Iterator[Metric]:
    yield GaugeMetricFamily("atoll_kv_blocks", "KV blocks in all.", stats.num_blocks)
    yield GaugeMetricFamily("atoll_kv_blocks_free", "KV blocks that are free or only cached.", stats.num_free_blocks)
    yield GaugeMetricFamily("atoll_kv_blocks_cached", "KV blocks that can be found again.", stats.num_cached_blocks)
    yield GaugeMetricFamily("atoll_kv_use_ratio", "The share of KV blocks that requests hold.", kv_use(stats))
    yield CounterMetricFamily("atoll_prefix_tokens", "Prompt tokens looked up in the cache.", stats.num_prefix_tokens)
    yield CounterMetricFamily(
        "atoll_prefix_tokens_found", "Prompt tokens that the cache had.", stats.num_prefix_tokens_found
    )


def _adapter_gauges(stats: EngineStats) -> Iterator[Metric]:
    tiers = stats.tiers
    yield GaugeMetricFamily("atoll_slots", "Adapters that the device has room for.", stats.num_slots)
    yield GaugeMetricFamily("atoll_resident_adapters", "Adapters on the device.", len(stats.resident_adapters))
    yield GaugeMetricFamily("atoll_host_adapters", "Adapters in host memory.", tiers.num_in_host)
    yield GaugeMetricFamily("atoll_host_adapter_bytes", "Host memory that adapters take.", tiers.host_bytes)
    yield GaugeMetricFamily("atoll_host_adapter_bytes_max", "Host memory for adapters.", tiers.max_host_bytes)
    yield GaugeMetricFamily("atoll_loading_adapters", "Adapters being loaded.", tiers.num_loading)


def _adapter_counters(stats: EngineStats) -> Iterator[Metric]:
    tiers = stats.tiers
    yield _counter(
        "atoll_adapter_lookups",
        "Where adapters were found: at once in a slot, in host memory, or only on disk.",
        "tier",
        {"device": tiers.num_slot_hits, "host": tiers.num_host_hits, "disk": tiers.num_reads},
    )
    yield _counter(
        "atoll_adapter_evictions",
        "Adapters that gave up their place.",
        "tier",
        {"device": tiers.num_slot_evictions, "host": tiers.num_host_evictions},
    )
    yield CounterMetricFamily("atoll_adapter_loads", "Adapters copied into slots.", tiers.num_loads)
    yield CounterMetricFamily("atoll_adapter_load_failures", "Adapters that could not be loaded.", tiers.num_failures)
    yield _counter(
        "atoll_adapter_load_seconds",
        "Seconds spent on reading adapters from disk and on copying them into slots.",
        "stage",
        {"read": tiers.read_s, "copy": tiers.copy_s},
    )


def _counter(name: str, text: str, label: str, values: dict[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _lora_info(stats: EngineStats) -> Metric:
    """What the Kubernetes Gateway API inference extension reads, with vLLM's labels; the newest sample counts."""
    family = GaugeMetricFamily(
        "lora_requests_info",
        "The adapters of running and of waiting requests; the value is the time.",
        labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
    )
    running, waiting = _listed(stats.running_by_adapter), _listed(stats.waiting_by_adapter)
    family.add_metric([str(stats.num_slots), running, waiting], time.time())
    return family


def _listed(names: Iterable[str]) -> str:
    return ",".join(sorted(name.replace(",", "_") for name in names if name)[:_MAX_NAMES])
