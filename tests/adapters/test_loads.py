"""Which load a free thread does, and that nobody's turn waits for what is loaded ahead of its turn."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from atoll.adapters import residency as residency_module
from atoll.adapters.loads import Load, Loads
from atoll.adapters.peft_io import read_adapter
from atoll.adapters.residency import NUM_LOADERS
from atoll.adapters.store import StoredAdapter
from support.residency import Harness


def load(digest: str, *, is_urgent: bool) -> Load:
    return Load(StoredAdapter(digest, 1, digest, Path(), None), is_urgent)


def test_urgent_loads_come_first_and_each_begins_once() -> None:
    loads = Loads()
    for digest, is_urgent in (("a", False), ("b", False), ("c", True), ("d", True)):
        loads[digest] = load(digest, is_urgent=is_urgent)
    assert [loads.begin_next().adapter.digest for _ in range(2)] == ["c", "d"]
    loads["b"].is_urgent = True  # its turn has come while it waits
    assert [loads.begin_next().adapter.digest for _ in range(2)] == ["b", "a"]


def test_slots_are_promised_to_urgent_loads_without_one_for_a_while() -> None:
    loads = Loads({"a": load("a", is_urgent=True), "b": load("b", is_urgent=True), "c": load("c", is_urgent=False)})
    loads["a"].has_slot = True
    assert loads.num_promised_slots(within_s=60) == 1
    assert loads.num_promised_slots(within_s=0) == 1, "a load that waits for a thread does not lose its turn"
    for _ in loads:
        loads.begin_next()
    assert loads.num_promised_slots(within_s=60) == 1
    assert loads.num_promised_slots(within_s=0) == 0, "reading takes too long"


def test_a_request_whose_turn_it_is_waits_for_no_queue_of_prefetches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(tmp_path, num_slots=8)
    ahead = [harness.adapter(f"ahead{seed}", seed) for seed in range(NUM_LOADERS + 3)]
    urgent = harness.adapter("urgent", 99)
    begun: list[Path] = []
    is_reading, may_read = threading.Semaphore(0), threading.Semaphore(0)

    def read(folder: Path, **options: Any) -> Any:
        begun.append(folder)
        is_reading.release()
        assert may_read.acquire(timeout=10)
        return read_adapter(folder, **options)

    monkeypatch.setattr(residency_module, "read_adapter", read)
    for adapter in ahead:
        harness.residency.prefetch(adapter)
    for _ in range(NUM_LOADERS):
        assert is_reading.acquire(timeout=10)
    assert harness.residency.acquire(urgent) is None
    may_read.release()
    assert is_reading.acquire(timeout=10)
    assert begun[NUM_LOADERS] == urgent.folder
    may_read.release(len(ahead))
    harness.settle()
    assert set(begun) == {adapter.folder for adapter in [*ahead, urgent]}
    harness.residency.close()
