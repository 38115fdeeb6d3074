"""Engines over tiny bases, and transformers' and PEFT's own greedy answers to hold them against."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from atoll.adapters.bank import AdapterBank
from atoll.adapters.store import AdapterStore, StoredAdapter
from atoll.engine import Engine, EngineConfig, EngineStats, Request, SamplingParams
from atoll.kernels.kv import block_bytes
from atoll.model.fuse import fuse
from atoll.model.load import BaseModel, load_base
from support.adapters import save_random_adapter
from support.tiny import make_model, save_tiny_base

# Different ranks and targets, so that segments of one batch differ in all that they can.
ADAPTERS: dict[str, dict[str, Any]] = {
    "alpha": {"r": 4},
    "beta": {"r": 8, "target_modules": ["q_proj", "v_proj"]},
    "gamma": {"r": 2, "target_modules": ["down_proj", "o_proj"]},
    "delta": {"r": 3, "use_rslora": True},
}
NUM_REFERENCE_TOKENS = 16


@dataclass
class World:
    """A tiny base with a store of random adapters; references are computed once and kept."""

    base_folder: Path
    adapters: dict[str, StoredAdapter]
    banks: dict[int, tuple[BaseModel, AdapterBank]] = field(default_factory=dict)
    references: dict[tuple[str | None, tuple[int, ...]], tuple[int, ...]] = field(default_factory=dict)

    def engine(self, *, num_slots: int = 4, num_blocks: int | None = None, **limits: Any) -> Engine:
        """An engine as build_engine makes it, not started; one model is kept for each number of slots."""
        if num_slots not in self.banks:
            base = load_base(str(self.base_folder), device="cpu", dtype="float32")
            self.banks[num_slots] = base, AdapterBank(base.model, num_slots=num_slots, max_rank=8)
            fuse(base.model)
        base, bank = self.banks[num_slots]
        if num_blocks is not None:
            size = limits.setdefault("block_size", 16)
            limits["kv_cache_bytes"] = num_blocks * block_bytes(base.kv_shapes, block_size=size, dtype=base.dtype)
        return Engine(base, bank=bank, config=EngineConfig(**limits))

    def reference(self, adapter: str | None, prompt_ids: tuple[int, ...]) -> tuple[int, ...]:
        """The first greedy tokens by transformers and PEFT alone, end tokens treated like any other."""
        key = adapter, prompt_ids
        if key not in self.references:
            model = AutoModelForCausalLM.from_pretrained(self.base_folder, dtype=torch.float32).eval()
            if adapter is not None:
                model = PeftModel.from_pretrained(model, self.adapters[adapter].folder).eval()
            self.references[key] = greedy(model, prompt_ids, NUM_REFERENCE_TOKENS)
        return self.references[key]


def greedy(model: Any, prompt_ids: tuple[int, ...], num_tokens: int) -> tuple[int, ...]:
    """transformers' own greedy search, without a stop."""
    with torch.no_grad():
        ids = model.generate(
            input_ids=torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return tuple(ids[0, len(prompt_ids) :].tolist())


def make_world(folder: Path, architecture: str = "llama") -> World:
    """Write a base and ADAPTERS; for other architectures those with names of Llama's layers target all layers."""
    base = save_tiny_base(folder / "base", architecture)
    store = AdapterStore(folder / "store")
    adapters = {}
    for seed, (name, config) in enumerate(ADAPTERS.items()):
        model = make_model(architecture)
        if architecture != "llama":
            config = config | {"target_modules": "all-linear"}
        adapters[name] = store.publish(name, save_random_adapter(folder / name, model, seed=seed, **config))
    return World(base, adapters)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, and lose much where other programs want the cores too."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def settled(engine: Engine) -> EngineStats:
    """The figures of an engine that has nothing left to do; the last event comes a moment before they say so."""
    deadline_s = time.monotonic() + 20
    while (stats := engine.stats()).num_running or stats.num_waiting:
        assert time.monotonic() < deadline_s, stats
        time.sleep(0.001)
    return stats


def make_prompt(seed: int, length: int) -> tuple[int, ...]:
    """Random tokens, none of them special."""
    return tuple(random.Random(seed).choices(range(3, 400), k=length))


def greedy_request(
    prompt_ids: tuple[int, ...], max_new_tokens: int = 8, adapter: StoredAdapter | None = None
) -> Request:
    """A greedy request that only its length ends."""
    sampling = SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True)
    return Request(prompt_ids=prompt_ids, sampling=sampling, adapter=adapter)
