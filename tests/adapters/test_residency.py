"""Slots while serving: loads beside the steps, evicts only what nobody uses, survives bad adapters."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from atoll.adapters.bank import AdapterBank
from atoll.adapters.peft_io import WEIGHTS_NAME
from atoll.adapters.residency import AdapterResidency
from atoll.adapters.store import AdapterStore, StoredAdapter
from atoll.errors import AdapterInvalid
from support.adapters import save_random_adapter
from support.tiny import make_model


class Harness:
    def __init__(self, tmp_path: Path, num_slots: int) -> None:
        self.model = make_model()
        self.bank = AdapterBank(self.model, num_slots=num_slots, max_rank=8)
        self.loaded = threading.Event()
        self.residency = AdapterResidency(self.bank, base_digest="sha256:0", on_loaded=self.loaded.set)
        self.store = AdapterStore(tmp_path / "store")
        self.tmp_path = tmp_path

    def adapter(self, name: str, seed: int) -> StoredAdapter:
        return self.store.publish(name, save_random_adapter(self.tmp_path / name, make_model(), seed=seed))

    def acquire(self, adapter: StoredAdapter) -> int | None:
        """Ask, wait for the read, ask again."""
        self.loaded.clear()
        slot = self.residency.acquire(adapter)
        if slot is None and self.loaded.wait(5):
            slot = self.residency.acquire(adapter)
        return slot


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path, num_slots=2)


def test_the_first_ask_never_blocks(harness: Harness) -> None:
    adapter = harness.adapter("a", 1)
    assert harness.residency.acquire(adapter) is None
    assert harness.loaded.wait(5)
    assert harness.residency.acquire(adapter) in (0, 1)


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
    assert harness.residency.num_evictions == 1


def test_an_adapter_in_use_is_never_evicted(harness: Harness) -> None:
    a, b, c = (harness.adapter(name, seed) for seed, name in enumerate("abc"))
    harness.acquire(a)
    harness.acquire(a)
    harness.acquire(b)
    harness.residency.release(a.digest)  # one of two holds
    assert harness.acquire(c) is None
    harness.residency.release(a.digest)
    assert harness.acquire(c) is not None


def test_a_damaged_adapter_is_refused_and_the_slots_stay_whole(harness: Harness) -> None:
    good, bad = harness.adapter("good", 1), harness.adapter("bad", 2)
    (bad.folder / WEIGHTS_NAME).write_bytes(b"broken")
    for _ in range(3):
        with pytest.raises(AdapterInvalid, match="damaged"):
            harness.acquire(bad)
    assert harness.acquire(good) is not None
    harness.residency.release(good.digest)
    assert harness.acquire(harness.adapter("c", 3)) is not None
    assert harness.acquire(harness.adapter("d", 4)) is not None
