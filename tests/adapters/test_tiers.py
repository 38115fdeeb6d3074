"""A thousand adapters, of which few fit into host memory and fewer into slots: nobody ever gets another's weights."""

from __future__ import annotations

import json
import random
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from atoll.adapters.bank import AdapterBank
from atoll.adapters.peft_files import CONFIG_NAME, WEIGHTS_NAME, adapter_digest
from atoll.adapters.peft_io import PREFIX, AdapterWeights
from atoll.adapters.residency import AdapterResidency
from atoll.adapters.store import StoredAdapter
from atoll.adapters.tiers import HostTier, default_host_bytes
from atoll.memory import Memory
from support.residency import LAYER, PLAIN
from support.tiny import make_model

NUM_ADAPTERS, NUM_HOSTED, NUM_SLOTS = 1000, 64, 16
NUM_REQUESTS, NUM_RUNNING, NUM_WAITING = 3000, 12, 24
RANK = 2
NUM_BYTES = 2 * RANK * (64 + 64)  # bfloat16


def numbered(folder: Path, number: int) -> StoredAdapter:
    """An adapter of one layer whose weights are its number everywhere."""
    folder.mkdir()
    width = PLAIN.get_submodule(LAYER).in_features
    tensors = {
        f"{PREFIX}{LAYER}.lora_A.weight": torch.full((RANK, width), float(number)).bfloat16(),
        f"{PREFIX}{LAYER}.lora_B.weight": torch.full((width, RANK), number / 2).bfloat16(),
    }
    save_file(tensors, folder / WEIGHTS_NAME)
    fields = {"peft_type": "LORA", "r": RANK, "lora_alpha": number + 1, "target_modules": ["q_proj"]}
    (folder / CONFIG_NAME).write_text(json.dumps(fields))
    return StoredAdapter(str(number), 0, adapter_digest(folder), folder, None)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[StoredAdapter]:
    folder = tmp_path_factory.mktemp("thousand")
    return [numbered(folder / str(number), number) for number in range(NUM_ADAPTERS)]


@pytest.fixture
def residency() -> Iterator[AdapterResidency]:
    bank = AdapterBank(make_model(), num_slots=NUM_SLOTS, max_rank=RANK)
    residency = AdapterResidency(bank, base_digest="", host_bytes=NUM_HOSTED * NUM_BYTES)
    yield residency
    residency.close()


def test_host_memory_is_a_share_of_what_this_process_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.adapters.tiers.main_memory", lambda: Memory(2**60, 1001))
    assert default_host_bytes() == 200


def check_slot(residency: AdapterResidency, adapter: StoredAdapter, slot: int) -> None:
    """The slot holds this adapter and no part of another."""
    lora = residency._bank.layers[LAYER].weights[slot]
    number = torch.tensor(float(adapter.name)).bfloat16().float()
    assert lora.scaling == (int(adapter.name) + 1) / RANK
    assert bool((lora.a == number).all())
    assert bool((lora.b == torch.tensor(float(adapter.name) / 2).bfloat16().float()).all())


def test_zipf_over_a_thousand_adapters(adapters: list[StoredAdapter], residency: AdapterResidency) -> None:
    rng = random.Random(0)
    weights = [1 / (rank + 1) ** 1.1 for rank in range(NUM_ADAPTERS)]
    arrivals = deque(rng.choices(adapters, weights, k=NUM_REQUESTS))
    waiting: list[StoredAdapter] = []
    running: list[tuple[StoredAdapter, int]] = []
    num_done = 0
    deadline_s = time.monotonic() + 60
    while num_done < NUM_REQUESTS:
        assert time.monotonic() < deadline_s, "requests starve"
        while arrivals and len(waiting) < NUM_WAITING:
            waiting.append(arrivals.popleft())
            residency.prefetch(waiting[-1])
        for adapter in list(waiting):
            if len(running) < NUM_RUNNING and (slot := residency.acquire(adapter)) is not None:
                waiting.remove(adapter)
                running.append((adapter, slot))
        for adapter, slot in running:
            check_slot(residency, adapter, slot)
        for _ in range(min(len(running), rng.randrange(4))):
            adapter, _ = running.pop(rng.randrange(len(running)))
            residency.release(adapter.digest)
            num_done += 1
        assert residency.stats().host_bytes <= NUM_HOSTED * NUM_BYTES
    stats = residency.stats()
    assert stats.num_failures == 0
    assert stats.num_in_host <= NUM_HOSTED
    assert len(residency.loaded) <= NUM_SLOTS
    assert NUM_HOSTED < stats.num_reads < NUM_REQUESTS / 2, "popular adapters stay in memory"
    assert stats.num_slot_hits > NUM_REQUESTS / 4, "the most popular ones stay in their slots"


def test_adapters_are_listed_with_their_tier(adapters: list[StoredAdapter], residency: AdapterResidency) -> None:
    for adapter in adapters[: NUM_SLOTS + 3]:
        while residency.acquire(adapter) is None:
            time.sleep(0.001)
        residency.release(adapter.digest)
    residency.acquire(adapters[NUM_SLOTS])
    places = {place.adapter.name: (place.tier, place.num_users) for place in residency.adapters()}
    assert len(places) == NUM_SLOTS + 3
    assert places["0"] == ("host", 0)
    assert places["5"] == ("device", 0)
    assert places[str(NUM_SLOTS)] == ("device", 1)


def test_host_memory_lets_the_first_class_go_before_the_second(adapters: list[StoredAdapter]) -> None:
    host = HostTier(3)
    for adapter in adapters[:3]:
        assert host.reserve(adapter, 1, [])
        host.put(adapter.digest, AdapterWeights({}, ""))
    host.find(adapters[0].digest)
    used = {adapters[1].digest}
    assert not host.reserve(adapters[3], 4, [lambda _: True]), "larger than all of it"
    assert len(list(host)) == 3, "nobody went in vain"
    assert host.reserve(adapters[3], 2, [lambda digest: digest not in used, lambda digest: digest in used])
    assert [adapter.name for adapter in host] == ["1"], "the idle ones went, and the new one is not read yet"
    assert not host.reserve(adapters[4], 2, [lambda _: True]), "room that is being read into is not taken away"
    assert (host.num_bytes, host.num_evictions) == (3, 2)
    host.drop(adapters[3].digest)
    assert host.num_bytes == 1
