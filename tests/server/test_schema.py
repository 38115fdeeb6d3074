"""Requests made up from our own OpenAPI schema: no server error, and no answer that the schema does not allow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS, load_all_checks

from support.servers import Served, served_world

NUM_EXAMPLES = 2_000 if os.environ.get("ATOLL_NIGHTLY") else 100
# A request that fits the schema may still name an adapter that is not there, or contradict itself.
IGNORED = ("positive_data_acceptance",)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose answers are short, whatever is asked for."""
    with served_world(tmp_path_factory.mktemp("small"), max_length=40, max_batch_tokens=128) as served:
        yield served


def test_made_up_requests_find_no_server_error_and_no_undocumented_answer(small: Served) -> None:
    load_all_checks()
    ignored = CHECKS.get_by_names(IGNORED)
    schema = schemathesis.openapi.from_url(f"{small.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 15
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=NUM_EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        def ask(case: schemathesis.Case) -> None:
            case.call_and_validate(excluded_checks=ignored, timeout=60)

        ask()
    stats = small.engine.stats()
    assert stats.num_running == stats.num_waiting == 0
    assert small.engine.is_alive


def test_the_store_is_where_it_was(small: Served) -> None:
    """Made-up adapter loads and unloads have left the others alone."""
    assert {"alpha", "beta"} <= set(small.store.names())
    assert Path(small.store.root).is_dir()
