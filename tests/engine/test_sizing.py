"""How much memory the KV cache and the slots take when nobody says it."""

from __future__ import annotations

import pytest

from atoll.adapters.bank import slot_bytes
from atoll.engine import Engine, EngineConfig, build_engine
from atoll.engine.sizing import choose_num_blocks, choose_num_slots
from atoll.errors import ConfigError
from atoll.kernels.kv import block_bytes
from atoll.memory import Memory
from atoll.model.load import load_base
from support.engines import World


def test_the_kv_cache_takes_its_share_of_what_this_process_may_take(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three tenths, and no more than its requests can fill."""
    base = engine.base
    bytes_per_block = block_bytes(base.kv_shapes, block_size=16, dtype=base.dtype)

    def num_blocks(available: int, max_num_requests: int = 100) -> int:
        monkeypatch.setattr("atoll.engine.sizing.main_memory", lambda: Memory(2**60, available))
        limits = {"block_size": 16, "max_num_requests": max_num_requests, "max_length": 160}
        return choose_num_blocks(base, **limits, kv_cache_bytes=None)

    assert num_blocks(1001 * bytes_per_block) == 300
    assert num_blocks(1001 * bytes_per_block, max_num_requests=29) == 290
    with pytest.raises(ConfigError, match="kv_cache_bytes"):
        num_blocks(0)


def test_there_is_a_slot_for_each_request_that_can_run_or_what_memory_allows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(str(world.base_folder), device="cpu", dtype="float32")
    num_bytes = slot_bytes(base.model, max_rank=8, dtype=base.dtype)

    def num_slots(available: int, max_num_requests: int = 100) -> int:
        monkeypatch.setattr("atoll.engine.sizing.main_memory", lambda: Memory(2**60, available))
        return choose_num_slots(base, max_rank=8, max_num_requests=max_num_requests)

    assert num_slots(102 * num_bytes) == 20
    assert num_slots(102 * num_bytes, max_num_requests=5) == 5
    assert num_slots(0) == 1
    monkeypatch.undo()
    with build_engine(base, max_rank=8, config=EngineConfig(max_num_requests=3)) as engine:
        assert engine.stats().num_slots == 3
