"""Pinned adapters: they keep a slot, whatever others ask for, until the name is unpinned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.adapters.peft_files import WEIGHTS_NAME
from atoll.errors import UsageError
from support.residency import Harness, adapter_bytes


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(tmp_path)
    yield harness
    harness.residency.close()


def test_a_pinned_adapter_keeps_its_slot_and_its_place_in_host_memory(tmp_path: Path) -> None:
    harness = Harness(tmp_path, num_slots=2, host_bytes=2 * adapter_bytes(tmp_path))
    pinned, *others = (harness.adapter(name, seed) for seed, name in enumerate("pabc"))
    slot = harness.use(pinned)
    harness.residency.pin(pinned)
    for adapter in others * 2:
        assert harness.use(adapter) != slot
    assert harness.residency.stats().num_host_evictions >= 4
    places = {place.adapter.name: place for place in harness.residency.adapters()}
    assert places["p"].tier == "device"
    assert places["p"].is_pinned
    with pytest.raises(UsageError, match="cannot be pinned"):
        harness.residency.pin(others[0])
    harness.residency.unpin(pinned.name)
    assert harness.use(others[0]) == slot
    harness.residency.close()


def test_a_pinned_adapter_takes_the_first_slot_that_comes_free(tmp_path: Path) -> None:
    harness = Harness(tmp_path, num_slots=2)
    pinned, *others = (harness.adapter(name, seed) for seed, name in enumerate("pab"))
    for adapter in others:
        harness.acquire(adapter)
    harness.residency.pin(pinned)
    assert harness.acquire(pinned) is None, "both slots are in use"
    harness.residency.release(others[0].digest)
    harness.settle()
    tiers = {item.adapter.name: item.tier for item in harness.residency.adapters()}
    assert tiers == {"p": "device", "a": "host", "b": "device"}
    harness.residency.close()


def test_a_newer_revision_takes_over_the_pin(harness: Harness) -> None:
    old = harness.adapter("p", 1)
    harness.residency.pin(old)
    harness.use(old)
    new = harness.adapter("p", 2)
    assert (old.revision, new.revision) == (1, 2)
    assert harness.residency.pinned == {old.digest}, "nobody has asked for the newer one"
    harness.residency.prefetch(new)
    harness.settle()
    assert harness.residency.pinned == {new.digest}
    harness.residency.prefetch(old)
    assert harness.residency.pinned == {new.digest}, "somebody may still ask for the older one by its revision"
    others = [harness.adapter(name, seed) for seed, name in enumerate("abc")]
    for adapter in others:
        harness.use(adapter)
    places = {place.adapter.id: place.tier for place in harness.residency.adapters()}
    assert places["p@2"] == "device"
    assert places.get("p@1") != "device"
    harness.residency.unpin("p")
    assert harness.residency.pinned == frozenset()
    for adapter in others[:2]:
        assert harness.acquire(adapter) is not None


def test_two_pins_of_one_content_leave_a_slot_when_one_of_them_moves_on(harness: Harness) -> None:
    first = harness.adapter("first", 1)
    second = harness.store.publish("second", first.folder)
    assert first.digest == second.digest
    harness.residency.pin(first)
    with pytest.raises(UsageError, match="the adapter second@1 cannot be pinned"):
        harness.residency.pin(second)


def test_a_pinned_adapter_that_cannot_be_loaded_is_logged(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    broken = harness.adapter("broken", 1)
    (broken.folder / WEIGHTS_NAME).write_bytes(b"broken")
    harness.residency.pin(broken)
    harness.settle()
    assert "the pinned adapter broken@1 could not be loaded" in caplog.text
