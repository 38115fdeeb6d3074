"""Steps as CUDA graphs. Without a GPU: the recording is `compute` itself, and Triton's interpreter runs its kernels."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from atoll.adapters.bank import AdapterBank
from atoll.engine import Engine, EngineConfig
from atoll.engine.decode_graphs import DecodeGraphs, _Shape
from atoll.kernels import attention, lora
from atoll.kernels.kv import KVCache
from atoll.kernels.lora import LoraTable, RecordedRows
from atoll.kernels.triton.lora import add_group
from atoll.model.attention import ATTENTION
from atoll.model.fuse import FusedLayer, fuse
from atoll.model.load import load_base
from atoll.model.probe import probe
from support.engines import World, greedy_request, make_prompt
from support.interpreter import IS_INTERPRETED
from support.tiny import make_model

LENGTHS = (5, 17, 30, 9, 12, 21, 3)
NUM_NEW = 12


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Recorded steps on a CPU as on CUDA: the recordings made, each of which computes anew when it is repeated."""
    if not IS_INTERPRETED:
        pytest.skip("Triton's kernels are compiled for the GPU here, which has a test of its own")
    recorded: list[Callable[[], None]] = []
    plain_attention, plain_lora = attention.paged_attention, lora.add_lora_group

    def paged_attention(
        q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, layout: Any, **options: Any
    ) -> Tensor:
        if "on_device" in vars(layout):
            return attention.decode_on_device(q, keys, values, layout, **options)[1]
        return plain_attention(q, k, v, keys, values, layout, **options)

    def add_lora_group(x: Tensor, y: Tensor, rows: Any, table: LoraTable) -> None:
        if isinstance(rows, RecordedRows):
            add_group(x, y, rows.tiles, table.on_device())
        else:
            plain_lora(x, y, rows, table)

    def record(compute: Callable[[], None]) -> Callable[[], None]:
        compute()
        kept_by_the_engine = weakref.ref(compute)  # a graph keeps none of the tensors that its kernels were given

        def repeat() -> None:
            again = kept_by_the_engine()
            assert again is not None
            again()

        recorded.append(repeat)
        return repeat

    monkeypatch.setattr("atoll.model.attention.paged_attention", paged_attention)
    monkeypatch.setattr("atoll.adapters.linear.add_lora_group", add_lora_group)
    monkeypatch.setattr("atoll.engine.decode_graphs.Recorder", lambda device: SimpleNamespace(record=record))
    monkeypatch.setattr(FusedLayer, "_few_rows_kernel", lambda layer: None)
    return recorded


def with_graphs(engine: Engine) -> Engine:
    """The engine of a CPU with what an engine of a GPU has."""
    core = engine._core
    runner, limits = core._runner, {"max_num_requests": engine.config.max_num_requests, "max_length": core.max_length}
    runner._graphs = DecodeGraphs(runner._base, runner._bank, runner._cache, **limits)
    return engine


def orders(world: World) -> list[tuple[str | None, tuple[int, ...]]]:
    names = [None, *world.adapters, "alpha", "beta"]
    return [(name, make_prompt(seed, length)) for seed, (name, length) in enumerate(zip(names, LENGTHS, strict=True))]


def answers(engine: Engine, world: World) -> list[tuple[int, ...]]:
    requests = [
        greedy_request(prompt, NUM_NEW, None if name is None else world.adapters[name])
        for name, prompt in orders(world)
    ]
    return [completion.token_ids for completion in engine.generate(requests)]


def references(world: World) -> list[tuple[int, ...]]:
    return [world.reference(name, prompt)[:NUM_NEW] for name, prompt in orders(world)]


def test_recorded_steps_answer_as_peft_does_while_adapters_come_and_go(
    world: World, emulated: list[Callable[[], None]]
) -> None:
    with with_graphs(world.engine(num_slots=2, block_size=4, max_num_requests=7)) as engine:
        for _ in range(2):
            assert answers(engine, world) == references(world)
            assert engine._core._runner._graphs is not None
            assert not engine._core._runner._graphs._is_refused
    assert 1 <= len(emulated) <= 8


def test_a_step_is_recorded_once_for_its_shape(world: World, emulated: list[Callable[[], None]]) -> None:
    with with_graphs(world.engine(num_slots=5, max_num_requests=4)) as engine:
        for adapter in (None, world.adapters["alpha"], world.adapters["alpha"], None):
            engine.generate([greedy_request(make_prompt(1, 9), 4, adapter) for _ in range(3)])
        assert len(emulated) == 2
        engine.generate([greedy_request(make_prompt(1, 9), 4) for _ in range(2)])
        assert len(emulated) == 3


def test_recordings_that_fail_or_answer_otherwise_are_not_used(
    world: World, emulated: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(compute: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    def forgetful(compute: Callable[[], None]) -> Callable[[], None]:
        compute()
        return lambda: None

    for record, why in [(failing, "RuntimeError: operation not permitted"), (forgetful, "other")]:
        monkeypatch.setattr("atoll.engine.decode_graphs.Recorder", lambda device, r=record: SimpleNamespace(record=r))
        caplog.clear()
        with caplog.at_level(logging.WARNING), with_graphs(world.engine(max_num_requests=7)) as engine:
            assert answers(engine, world) == references(world)
        assert len(caplog.records) == 1
        assert why in caplog.text


class _Recordable(TorchDispatchMode):
    """Refuses what a CUDA graph cannot hold: waiting for the device, and copies between it and the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in [*args, out] if isinstance(x, Tensor) and x.dim()}
        assert len(devices) <= 1, f"{func} crosses from one device to another"
        assert "local_scalar" not in str(func), "a number is read from the device"
        return out


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3"])
def test_what_is_recorded_never_waits_for_the_device(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device of tensors without numbers, which nobody can wait for."""
    monkeypatch.setattr(
        "atoll.kernels.triton.attention.paged_decode", lambda q, keys, values, *others, **more: torch.empty_like(q)
    )
    monkeypatch.setattr("atoll.adapters.linear.add_lora_group", lambda x, y, rows, table: y.add_(x.sum()))
    monkeypatch.setattr("atoll.engine.decode_graphs.Recorder", lambda device: None)
    shapes, model = probe(make_model(architecture)), cast("Any", make_model(architecture)).to("meta")
    model.set_attn_implementation(ATTENTION)
    base: Any = SimpleNamespace(model=model, device=model.device, dtype=torch.float32)
    bank = AdapterBank(model, num_slots=2, max_rank=8)
    fuse(model)
    cache = KVCache.allocate(shapes, num_blocks=8, block_size=4, dtype=torch.float32, device="meta")
    graphs = DecodeGraphs(base, bank, cache, max_num_requests=4, max_length=32)
    for max_rank in (0, 16):
        rows = RecordedRows(4, max_rank, base.device) if max_rank else None
        compute = graphs._step(_Shape(4, 1024, max_rank), rows)
        with torch.inference_mode(), _Recordable():
            compute()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_answers_with_graphs_as_without(world: World) -> None:
    def served(cuda_graphs: bool) -> list[tuple[int, ...]]:
        base = load_base(str(world.base_folder), device="cuda", dtype="float32")
        bank = AdapterBank(base.model, num_slots=2, max_rank=8)
        fuse(base.model)
        config = EngineConfig(max_num_requests=7, cuda_graphs=cuda_graphs)
        with Engine(base, bank=bank, config=config) as engine:
            found = [answers(engine, world) for _ in range(2)]
            graphs = engine._core._runner._graphs
            assert (graphs is not None and not graphs._is_refused and bool(graphs._recordings)) == cuda_graphs
        return found[0] + found[1]

    assert served(True) == served(False) == references(world) * 2
