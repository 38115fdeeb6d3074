"""Prometheus metrics: LoRAX's names for its users' dashboards, and `atoll_*` for what LoRAX does not measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from atoll.adapters.merger import MERGED_LABEL, MERGED_PREFIX
from atoll.engine import FinishEvent, Request
from atoll.server.engine_metrics import EngineCollector

if TYPE_CHECKING:
    from atoll.engine import EngineStats

Buckets = tuple[tuple[float, float], ...]
"""(upper bound in seconds, how often it was not exceeded), the last bound infinite."""

BASE_LABEL = "base"
OTHER_LABEL = "other"
_DURATION_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_GAP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_TOKEN_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_LORAX_DURATIONS = {
    "duration": "Seconds from submission to the end.",
    "validation_duration": "Seconds until submission: the adapter found, the prompt made and checked.",
    "queue_duration": "Seconds from submission to the first step.",
    "inference_duration": "Seconds from the first step to the end.",
    "mean_time_per_token_duration": "Mean seconds for each token.",
}


class ServerMetrics:
    """One server's metrics, in a registry of their own. All methods belong to the event loop."""

    def __init__(self, stats: Callable[[], EngineStats], max_adapters: int) -> None:
        self._max_adapters = max_adapters
        self._labels: set[str] = set()
        self._registry = CollectorRegistry()
        self._lorax = _LoraxCounts()
        self._registry.register(self._lorax)
        self._registry.register(EngineCollector(stats))
        self._requests = Counter(
            "atoll_requests", "Requests that ended, by adapter.", ["adapter", "outcome"], registry=self._registry
        )
        self._refused = Counter(
            "atoll_requests_refused", "Requests that never reached the engine.", ["reason"], registry=self._registry
        )
        self._tokens = Counter(
            "atoll_tokens", "Tokens of answered requests.", ["adapter", "kind"], registry=self._registry
        )
        self._queue_s = self._durations("queue_seconds", "From submission to the first step.")
        self._first_token_s = self._durations("time_to_first_token_seconds", "From submission to the first token.")
        self._duration_s = self._durations("request_seconds", "From submission to the end.")
        self._gap_s = self._histogram("atoll_inter_token_seconds", "Between two tokens of a request.", _GAP_BUCKETS_S)
        self._lorax_s = {
            name: self._histogram(f"lorax_request_{name}", text, _DURATION_BUCKETS_S)
            for name, text in _LORAX_DURATIONS.items()
        }
        self._input_length = self._histogram("lorax_request_input_length", "Prompt tokens.", _TOKEN_BUCKETS)
        self._generated = self._histogram("lorax_request_generated_tokens", "Generated tokens.", _TOKEN_BUCKETS)
        self._max_new = self._histogram("lorax_request_max_new_tokens", "Tokens asked for.", _TOKEN_BUCKETS)

    def finished(self, request: Request, finish: FinishEvent, validation_s: float) -> None:
        """A request has been answered. validation_s: what went by before it was submitted."""
        num_new_tokens = len(finish.token_ids)
        label = self._label(request)
        timings = finish.timings
        self._tokens.labels(label, "prompt").inc(finish.num_prompt_tokens)
        self._tokens.labels(label, "cached").inc(finish.num_cached_tokens)
        self._tokens.labels(label, "completion").inc(num_new_tokens)
        self._queue_s.observe(timings.queue_s)
        self._duration_s.observe(timings.total_s)
        if num_new_tokens:
            self._first_token_s.observe(timings.first_token_s)
        inference_s = timings.total_s - timings.queue_s
        self._lorax_s["duration"].observe(timings.total_s)
        self._lorax_s["validation_duration"].observe(validation_s)
        self._lorax_s["queue_duration"].observe(timings.queue_s)
        self._lorax_s["inference_duration"].observe(inference_s)
        self._lorax_s["mean_time_per_token_duration"].observe(inference_s / max(1, num_new_tokens))
        self._input_length.observe(finish.num_prompt_tokens)
        self._generated.observe(num_new_tokens)
        self._max_new.observe(request.sampling.max_new_tokens)

    def token_came(self, gap_s: float) -> None:
        """A token of a request came so long after the one before it."""
        self._gap_s.observe(gap_s)

    def ended(self, request: Request, outcome: str) -> None:
        """A request that reached the engine has ended: ok, failed, cancelled or slow_reader."""
        self._requests.labels(self._label(request), outcome).inc()
        self._lorax.count(None if outcome == "ok" else "generation")

    def refused(self, reason: str) -> None:
        """A request did not reach the engine; `reason` is an error's code."""
        self._refused.labels(reason).inc()
        self._lorax.count("overloaded" if reason == "overloaded" else "validation")

    def latencies(self) -> dict[str, Buckets]:
        """How often each latency was seen since the start, by what it measures."""
        kinds = {"queue": self._queue_s, "first_token": self._first_token_s, "between_tokens": self._gap_s}
        return {name: _buckets(histogram) for name, histogram in (kinds | {"request": self._duration_s}).items()}

    def troubles(self) -> dict[str, int]:
        """How many requests were refused or did not end well, by reason."""
        refused = {key: number for (key,), number in _counts(self._refused).items()}
        ended: dict[str, int] = {}
        for (_, outcome), number in _counts(self._requests).items():
            if outcome != "ok":
                ended[outcome] = ended.get(outcome, 0) + number
        return ended | refused

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _durations(self, name: str, text: str) -> Histogram:
        return self._histogram(f"atoll_{name}", text, _DURATION_BUCKETS_S)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self._registry)

    def _label(self, request: Request) -> str:
        """The adapter's name while there are few of them: labels cost memory here and in every Prometheus.

        Who has a label keeps it: a counter whose label moved to a busier adapter would lose its history.
        """
        if request.adapter is None:
            return BASE_LABEL
        name = request.adapter.name
        if name.startswith(MERGED_PREFIX):
            return MERGED_LABEL
        if name not in self._labels:
            if len(self._labels) >= self._max_adapters:
                return OTHER_LABEL
            self._labels.add(name)
        return name


def _buckets(histogram: Histogram) -> Buckets:
    samples = (sample for family in histogram.collect() for sample in family.samples)
    return tuple((float(s.labels["le"]), s.value) for s in samples if s.name.endswith("_bucket"))


def _counts(counter: Counter) -> dict[tuple[str, ...], int]:
    samples = (sample for family in counter.collect() for sample in family.samples)
    return {tuple(s.labels.values()): int(s.value) for s in samples if s.name.endswith("_total")}


class _LoraxCounts(Collector):
    """LoRAX's counters: their names lack the `_total` that prometheus_client would add."""

    def __init__(self) -> None:
        self._num_requests = 0
        self._num_failures: dict[str, int] = {}

    def count(self, failure: str | None) -> None:
        self._num_requests += 1
        if failure is not None:
            self._num_failures[failure] = self._num_failures.get(failure, 0) + 1

    def collect(self) -> Iterator[Metric]:
        num_failed = sum(self._num_failures.values())
        count = Metric("lorax_request_count", "Requests, counted when they end.", "unknown")
        count.add_sample("lorax_request_count", {}, self._num_requests)
        success = Metric("lorax_request_success", "Requests that were answered.", "unknown")
        success.add_sample("lorax_request_success", {}, self._num_requests - num_failed)
        failure = Metric("lorax_request_failure", "Requests that were not, by kind of error.", "unknown")
        for kind, number in self._num_failures.items():
            failure.add_sample("lorax_request_failure", {"err": kind}, number)
        yield from (count, success, failure)
