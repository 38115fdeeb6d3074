"""Requests made up from our own OpenAPI schema, and against it: no server error, no answer that it does not allow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from support.scale import scaled
from support.servers import Served, served_world

NUM_EXAMPLES = scaled(100, 2_000)
# A request that fits the schema may still name an adapter that is not there, or contradict itself.
IGNORED = ("positive_data_acceptance",)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose answers are short, whatever is asked for."""
    with served_world(tmp_path_factory.mktemp("small"), max_length=40, max_batch_tokens=128) as served:
        yield served


def num_refused(operation: Any, mode: GenerationMode) -> int:
    """Send what is made up for an operation, look at each answer, and count those that refuse the body."""
    ignored = CHECKS.get_by_names(IGNORED)
    statuses: list[int] = []

    @given(case=operation.as_strategy(mode))
    @settings(
        max_examples=NUM_EXAMPLES // 2 if operation.body else NUM_EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    def ask(case: schemathesis.Case) -> None:
        statuses.append(case.call_and_validate(excluded_checks=ignored, timeout=60).status_code)

    ask()
    return sum(status in (400, 422) for status in statuses)


def test_made_up_requests_find_no_server_error_and_no_undocumented_answer(small: Served) -> None:
    """Half of the bodies break the schema somewhere. Where there is no body, there is nothing to break."""
    load_all_checks()
    schema = schemathesis.openapi.from_url(f"{small.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 15
    assert sum(bool(operation.body) for operation in operations) > 10
    for operation in operations:
        num_refused(operation, GenerationMode.POSITIVE)
        if operation.body:
            assert num_refused(operation, GenerationMode.NEGATIVE) == NUM_EXAMPLES // 2, operation.label
    stats = small.engine.stats()
    assert stats.num_running == stats.num_waiting == 0
    assert small.engine.is_alive


def test_the_store_is_where_it_was(small: Served) -> None:
    """Made-up adapter loads and unloads have left the others alone."""
    assert {"alpha", "beta"} <= set(small.store.names())
    assert Path(small.store.root).is_dir()
