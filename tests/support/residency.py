"""A residency over a tiny model with a store beside it, and waiting in the place of an engine's steps."""

from __future__ import annotations

import time
from pathlib import Path

from torch import Tensor

from atoll.adapters.bank import AdapterBank
from atoll.adapters.residency import AdapterResidency
from atoll.adapters.store import AdapterStore, StoredAdapter
from support.adapters import save_random_adapter
from support.tiny import make_model

LAYER = "model.layers.0.self_attn.q_proj"
PLAIN = make_model()


class Harness:
    """Adapters of rank 4 on q_proj alone take LAYER_BYTES each, so that limits in bytes are numbers of adapters."""

    def __init__(self, folder: Path, *, num_slots: int = 2, host_bytes: int | None = None) -> None:
        self.bank = AdapterBank(make_model(), num_slots=num_slots, max_rank=8)
        self.residency = AdapterResidency(self.bank, base_digest="sha256:0", host_bytes=host_bytes)
        self.store = AdapterStore(folder / "store")
        self.folder = folder

    def adapter(self, name: str, seed: int) -> StoredAdapter:
        """Publish a random adapter."""
        folder = save_random_adapter(self.folder / f"{name}-{seed}", PLAIN, seed=seed, target_modules=["q_proj"])
        return self.store.publish(name, folder)

    def settle(self) -> None:
        """Wait until nothing loads."""
        deadline_s = time.monotonic() + 10
        while self.residency.stats().num_loading:
            assert time.monotonic() < deadline_s
            time.sleep(0.001)

    def acquire(self, adapter: StoredAdapter) -> int | None:
        """Ask, wait for the load, ask again; None if every slot is in use."""
        slot = self.residency.acquire(adapter)
        if slot is None:
            self.settle()
            slot = self.residency.acquire(adapter)
        return slot

    def use(self, adapter: StoredAdapter) -> int:
        """Acquire and release."""
        slot = self.acquire(adapter)
        assert slot is not None
        self.residency.release(adapter.digest)
        return slot

    def in_slot(self, slot: int) -> Tensor:
        """What the rows of a slot are multiplied with in one layer."""
        return self.bank.layers[LAYER].weights[slot].a


def adapter_bytes(folder: Path) -> int:
    """What one of the harness's adapters takes in host memory."""
    harness = Harness(folder / "measure")
    harness.use(harness.adapter("a", 0))
    harness.residency.close()
    return harness.residency.stats().host_bytes
