"""Slots while serving: loads beside the steps, evicts only what nobody uses, survives bad adapters."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atoll.adapters import residency as residency_module
from atoll.adapters.bank import AdapterBank
from atoll.adapters.contract import AdapterContract, BaseRef
from atoll.adapters.peft_files import WEIGHTS_NAME
from atoll.adapters.peft_io import read_adapter
from atoll.adapters.residency import AdapterResidency
from atoll.config.task import GenerationConfig, PromptConfig
from atoll.errors import AdapterInvalid, Overloaded
from support.residency import LAYER, Harness, adapter_bytes
from support.tiny import make_model


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(tmp_path)
    yield harness
    harness.residency.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No file is read until it is set."""
    event = threading.Event()

    def slow_read(folder: Path, **options: Any) -> Any:
        assert event.wait(10)
        return read_adapter(folder, **options)

    monkeypatch.setattr(residency_module, "read_adapter", slow_read)
    return event


def test_the_first_ask_never_blocks(harness: Harness, gate: threading.Event) -> None:
    adapter = harness.adapter("a", 1)
    assert harness.residency.acquire(adapter) is None
    assert harness.residency.acquire(adapter) is None
    gate.set()
    slot = harness.acquire(adapter)
    assert slot is not None
    assert torch.equal(harness.in_slot(slot), read_adapter(adapter.folder).modules[LAYER].a)
    assert harness.residency.stats().num_reads == 1, "two asks are one load"


def test_the_least_recently_used_idle_adapter_goes_first(harness: Harness) -> None:
    a, b, c = (harness.adapter(name, seed) for seed, name in enumerate("abc"))
    slot_a, slot_b = harness.acquire(a), harness.acquire(b)
    assert {slot_a, slot_b} == {0, 1}
    assert harness.acquire(c) is None, "both slots are in use"
    harness.residency.release(b.digest)
    harness.residency.release(a.digest)
    assert harness.residency.acquire(a) == slot_a, "a is used again, so b is the older one"
    harness.residency.release(a.digest)
    assert harness.acquire(c) == slot_b
    assert [adapter.name for adapter in harness.residency.loaded] == ["a", "c"]
    assert harness.residency.stats().num_slot_evictions == 1


def test_an_adapter_in_use_is_never_evicted(harness: Harness) -> None:
    a, b, c = (harness.adapter(name, seed) for seed, name in enumerate("abc"))
    slot = harness.acquire(a)
    assert slot is not None
    harness.acquire(a)
    harness.acquire(b)
    before = harness.in_slot(slot).clone()
    harness.residency.release(a.digest)  # one of two holds
    harness.residency.prefetch(c)
    assert harness.acquire(c) is None
    assert torch.equal(harness.in_slot(slot), before)
    harness.residency.release(a.digest)
    assert harness.acquire(c) == slot


def test_what_comes_back_from_host_memory_needs_no_file(harness: Harness) -> None:
    a, b, c = (harness.adapter(name, seed) for seed, name in enumerate("abc"))
    for adapter in (a, b, c):
        harness.use(adapter)
    (a.folder / WEIGHTS_NAME).unlink()
    slot = harness.acquire(a)
    assert slot is not None
    stats = harness.residency.stats()
    assert (stats.num_reads, stats.num_host_hits, stats.num_loads, stats.num_slot_hits) == (3, 1, 4, 0)


def test_what_is_used_in_its_slot_stays_in_host_memory(tmp_path: Path) -> None:
    harness = Harness(tmp_path, num_slots=2, host_bytes=3 * adapter_bytes(tmp_path))
    a, b, c, d = (harness.adapter(name, seed) for seed, name in enumerate("abcd"))
    for adapter in (a, b, a, c, d):
        harness.use(adapter)
    tiers = {place.adapter.name: place.tier for place in harness.residency.adapters()}
    assert tiers == {"a": "host", "c": "device", "d": "device"}
    harness.residency.close()


def test_a_damaged_adapter_is_refused_and_the_slots_stay_whole(harness: Harness) -> None:
    good, bad = harness.adapter("good", 1), harness.adapter("bad", 2)
    whole = (bad.folder / WEIGHTS_NAME).read_bytes()
    (bad.folder / WEIGHTS_NAME).write_bytes(b"broken")
    for _ in range(3):
        with pytest.raises(AdapterInvalid, match="damaged"):
            harness.acquire(bad)
    assert harness.acquire(good) is not None
    (bad.folder / WEIGHTS_NAME).write_bytes(whole)
    assert harness.acquire(bad) is not None, "repaired, and asked for again"
    assert harness.residency.stats().num_failures == 3


def test_a_copy_that_fails_gives_its_slot_back(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = harness.adapter("a", 1), harness.adapter("b", 2)

    def fail(slot: int, adapter: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(harness.bank, "stage", fail)
        for _ in range(3):
            with pytest.raises(AdapterInvalid, match="MemoryError"):
                harness.acquire(a)
    assert {harness.acquire(a), harness.acquire(b)} == {0, 1}


def test_one_slow_adapter_does_not_hold_up_the_others(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, a, b = (harness.adapter(name, seed) for seed, name in enumerate(["slow", "a", "b"]))
    gate = threading.Event()

    def read(folder: Path, **options: Any) -> Any:
        assert folder != slow.folder or gate.wait(10)
        return read_adapter(folder, **options)

    monkeypatch.setattr(residency_module, "read_adapter", read)
    assert harness.residency.acquire(slow) is None
    for adapter in (a, b):
        while harness.residency.acquire(adapter) is None:
            time.sleep(0.001)
    gate.set()
    harness.settle()


def test_a_slot_is_for_whoever_asked_first_and_not_for_whoever_is_read_fastest(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(tmp_path, num_slots=1)
    running, first, second = (harness.adapter(name, seed) for seed, name in enumerate(["running", "first", "second"]))
    gate.set()
    for adapter in (second, running):
        harness.use(adapter)  # from now on both are in host memory
    gate.clear()
    assert harness.residency.acquire(running) is not None
    assert [harness.residency.acquire(adapter) for adapter in (first, second)] == [None, None]
    harness.residency.release(running.digest)
    assert [harness.residency.acquire(adapter) for adapter in (first, second)] == [None, None]
    assert harness.residency.stats().num_loading == 1
    monkeypatch.setattr(residency_module, "KEEP_S", 0.0)
    deadline_s = time.monotonic() + 10
    while harness.residency.acquire(second) is None:
        assert time.monotonic() < deadline_s, "a disk that hangs keeps the slot from nobody"
        time.sleep(0.001)
    gate.set()
    harness.settle()
    harness.residency.close()


def test_a_newcomer_takes_no_slot_from_those_who_wait(tmp_path: Path) -> None:
    harness = Harness(tmp_path, num_slots=1)
    running, first, second = (harness.adapter(name, seed) for seed, name in enumerate(["running", "first", "second"]))
    for adapter in (second, running):
        harness.use(adapter)
    assert harness.residency.acquire(running) is not None
    harness.residency.prefetch(first)
    harness.settle()
    assert harness.residency.acquire(first) is None
    harness.residency.release(running.digest)
    harness.residency.prefetch(second)
    harness.settle()
    assert harness.residency.stats().num_loads == 2, "the slot is for the first"
    assert harness.acquire(first) is not None
    harness.residency.close()


def test_who_finds_no_room_in_host_memory_is_woken_when_another_load_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = adapter_bytes(tmp_path)
    gate, ends = threading.Event(), threading.Semaphore(0)
    bank = AdapterBank(make_model(), num_slots=2, max_rank=8)
    residency = AdapterResidency(bank, base_digest="sha256:0", host_bytes=size, on_loaded=ends.release)
    harness = Harness(tmp_path)
    slow, other = harness.adapter("slow", 1), harness.adapter("other", 2)
    begun = threading.Event()

    def read(folder: Path, *, allocate: Any, **options: Any) -> Any:
        def allocate_slowly(num_bytes: int) -> Any:
            memory = allocate(num_bytes)
            begun.set()
            assert gate.wait(10)
            return memory

        return read_adapter(folder, allocate=allocate_slowly, **options)

    monkeypatch.setattr(residency_module, "read_adapter", read)
    assert residency.acquire(slow) is None
    assert begun.wait(10)
    assert residency.acquire(other) is None
    deadline_s = time.monotonic() + 10
    while residency.stats().num_loading > 1:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    assert not ends.acquire(blocking=False), "it would ask in circles"
    gate.set()
    assert ends.acquire(timeout=10)
    residency.close()
    harness.residency.close()


def test_an_adapter_of_another_base_is_refused_without_reading_it(harness: Harness, gate: threading.Event) -> None:
    contract = AdapterContract(
        name="a",
        base=BaseRef(name="other/base", digest="sha256:1"),
        task="test",
        prompt=PromptConfig(template="{text}"),
        chat=False,
        input_columns=("text",),
        target_column="answer",
        max_length=64,
        generation=GenerationConfig(max_new_tokens=4),
    )
    with pytest.raises(AdapterInvalid, match="belongs to the base model 'other/base'"):
        harness.acquire(replace(harness.adapter("a", 1), contract=contract))


# Prefetch


def test_a_prefetched_adapter_is_there_when_its_turn_comes(harness: Harness, gate: threading.Event) -> None:
    adapter = harness.adapter("a", 1)
    harness.residency.prefetch(adapter)
    gate.set()
    harness.settle()
    assert harness.residency.loaded == [], "it is published when it is acquired"
    assert harness.residency.acquire(adapter) is not None
    assert harness.residency.stats().num_loads == 1


def test_a_prefetch_takes_no_slot_from_those_who_wait(harness: Harness) -> None:
    adapters = [harness.adapter(name, seed) for seed, name in enumerate("abcd")]
    for adapter in adapters:
        harness.residency.prefetch(adapter)
        harness.settle()
    assert [harness.residency.acquire(adapter) is not None for adapter in adapters] == [True, True, False, False]
    for adapter in adapters[:2]:
        harness.residency.release(adapter.digest)
    for adapter in adapters[2:]:
        assert harness.acquire(adapter) is not None
    stats = harness.residency.stats()
    assert (stats.num_reads, stats.num_loads, stats.num_host_hits) == (4, 4, 2)


def test_a_request_whose_turn_it_is_takes_the_slot_of_one_that_went_away(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency_module, "KEEP_S", 60.0)
    a, b, c = (harness.adapter(name, seed) for seed, name in enumerate("abc"))
    for adapter in (a, b):
        harness.residency.prefetch(adapter)
        harness.settle()
    assert harness.acquire(c) is None, "both may be acquired in this very step"
    monkeypatch.setattr(residency_module, "KEEP_S", 0.0)
    assert harness.acquire(c) is not None


def test_prefetching_is_bounded_and_leaves_room_for_those_whose_turn_it_is(
    harness: Harness, gate: threading.Event
) -> None:
    adapters = [harness.adapter(f"a{seed}", seed) for seed in range(residency_module.MAX_PREFETCHES + 3)]
    for adapter in adapters:
        harness.residency.prefetch(adapter)
    assert harness.residency.stats().num_loading == residency_module.MAX_PREFETCHES
    harness.residency.acquire(adapters[-1])
    assert harness.residency.stats().num_loading == residency_module.MAX_PREFETCHES + 1
    gate.set()


def test_the_error_of_a_prefetch_reaches_the_request(harness: Harness) -> None:
    bad = harness.adapter("bad", 1)
    (bad.folder / WEIGHTS_NAME).write_bytes(b"broken")
    harness.residency.prefetch(bad)
    harness.settle()
    harness.residency.prefetch(bad)  # a second request, before the first had its turn
    harness.settle()
    with pytest.raises(AdapterInvalid, match="damaged"):
        harness.residency.acquire(bad)


def test_an_adapter_that_can_never_fit_is_refused_by_name(tmp_path: Path) -> None:
    size = adapter_bytes(tmp_path)
    harness = Harness(tmp_path, num_slots=3, host_bytes=size - 1)
    with pytest.raises(AdapterInvalid, match=f"has {size} bytes, host memory for adapters {size - 1}"):
        harness.acquire(harness.adapter("a", 1))
    harness = Harness(tmp_path / "2", num_slots=3, host_bytes=size)
    pinned = harness.adapter("p", 2)
    harness.use(pinned)
    harness.residency.pin(pinned)
    with pytest.raises(Overloaded, match="pinned adapters fill the host memory"):
        harness.acquire(harness.adapter("b", 3))
