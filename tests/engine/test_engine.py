"""The engine as its callers meet it: threads, aborts, failures of one that must not become failures of others."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from atoll.adapters.bank import AdapterBank
from atoll.adapters.peft_io import AdapterWeights, read_adapter
from atoll.adapters.store import StoredAdapter, adapter_digest
from atoll.engine import Engine, ErrorEvent, Event, FinishEvent, Request, SamplingParams, TokenEvent
from atoll.errors import AdapterInvalid, AtollError, ConfigError, RequestInvalid, UsageError
from atoll.model.load import load_base
from support.adapters import peft_logits, save_random_adapter
from support.engines import ADAPTERS, World, greedy_request, make_prompt, settled
from support.tiny import make_model

PROMPT = make_prompt(0, 9)


class Receiver:
    """Collects a request's events; `wait` returns the last one."""

    def __init__(self) -> None:
        self.tokens: list[TokenEvent] = []
        self.last: list[FinishEvent | ErrorEvent] = []
        self.first_token = threading.Event()
        self._ended = threading.Event()

    def __call__(self, event: Event) -> None:
        if isinstance(event, TokenEvent):
            assert not self.last, "a token after the end"
            self.tokens.append(event)
            self.first_token.set()
        else:
            self.last.append(event)
            self._ended.set()

    def wait(self) -> FinishEvent | ErrorEvent:
        assert self._ended.wait(30), "the request never ended"
        (last,) = self.last
        return last


def submit(engine: Engine, request: Request) -> Receiver:
    receiver = Receiver()
    engine.submit(replace(request, on_event=receiver))
    return receiver


def copied(adapter: StoredAdapter, folder: Path, change: Callable[[Path], None]) -> StoredAdapter:
    """A damaged copy of an adapter, under a digest of its own."""
    shutil.copytree(adapter.folder, folder)
    change(folder / "adapter_model.safetensors")
    return replace(adapter, name=folder.name, digest=adapter_digest(folder), folder=folder)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def overflow(path: Path) -> None:
    save_file({name: tensor * 1e25 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


# Streams


def test_a_stream_adds_up_to_its_completion(world: World, engine: Engine) -> None:
    engine.start()
    receiver = submit(engine, greedy_request(PROMPT, 12, world.adapters["beta"]))
    finish = receiver.wait()
    assert isinstance(finish, FinishEvent)
    assert (
        finish.token_ids == tuple(event.token_id for event in receiver.tokens) == world.reference("beta", PROMPT)[:12]
    )
    assert finish.text == "".join(event.text for event in receiver.tokens)
    assert finish.num_prompt_tokens == len(PROMPT)
    assert 0 <= finish.timings.queue_s <= finish.timings.first_token_s <= finish.timings.total_s


def test_a_stop_string_ends_the_request(world: World, engine: Engine) -> None:
    (whole,) = engine.generate([greedy_request(PROMPT, 16)])
    stop = whole.text[4:7]
    request = greedy_request(PROMPT, 16)
    (cut,) = engine.generate([replace(request, sampling=replace(request.sampling, stop=(stop,)))])
    assert cut.finish is not None
    assert cut.text == whole.text[: whole.text.find(stop)]
    assert (cut.finish.finish_reason, cut.finish.stop_reason) == ("stop", "stop_string")
    assert len(cut.token_ids) < 16


def test_an_end_token_of_the_base_ends_the_request(world: World) -> None:
    """The third token of the reference is declared an end token."""
    reference = world.reference(None, PROMPT)
    assert reference[2] not in reference[:2]
    base = replace(load_base(str(world.base_folder), device="cpu", dtype="float32"), end_ids=frozenset([reference[2]]))
    with Engine(base, bank=AdapterBank(base.model, num_slots=1, max_rank=8)) as engine:
        sampling = SamplingParams(max_new_tokens=9)
        (completion,) = engine.generate([Request(prompt_ids=PROMPT, sampling=sampling)])
    assert completion.token_ids == reference[:3]
    assert completion.finish is not None
    assert completion.finish.stop_reason == "eos"


@pytest.mark.parametrize("name", [None, "alpha"])
def test_logprobs_equal_those_of_a_plain_forward_pass(world: World, engine: Engine, name: str | None) -> None:
    adapter = world.adapters[name] if name else None
    request = greedy_request(PROMPT, 8, adapter)
    (completion,) = engine.generate([replace(request, sampling=replace(request.sampling, logprobs=3))])
    model = AutoModelForCausalLM.from_pretrained(world.base_folder, dtype=torch.float32)
    logits = peft_logits(model, adapter.folder if adapter else None, [*PROMPT, *completion.token_ids])
    expected = logits.log_softmax(-1)[len(PROMPT) - 1 : -1]
    for row, token in zip(expected, completion.tokens, strict=True):
        assert token.logprob == pytest.approx(row[token.token_id].item(), abs=2e-4)
        assert [token_id for token_id, _ in token.top] == row.topk(3).indices.tolist()
        assert [logprob for _, logprob in token.top] == pytest.approx(row.topk(3).values.tolist(), abs=2e-4)


# Adapters


def test_more_adapters_than_slots(world: World) -> None:
    engine = world.engine(num_slots=1)
    names = [*ADAPTERS, *ADAPTERS, None]
    completions = engine.generate([greedy_request(PROMPT, 6, world.adapters[n] if n else None) for n in names])
    assert [completion.token_ids for completion in completions] == [world.reference(n, PROMPT)[:6] for n in names]
    stats = settled(engine)
    assert stats.tiers.num_slot_evictions >= 3
    assert len(stats.resident_adapters) == 1
    engine.close()


def test_a_resident_adapter_is_not_loaded_again(world: World, engine: Engine) -> None:
    for _ in range(3):
        engine.generate([greedy_request(PROMPT, 2, world.adapters["alpha"])])
    assert engine.stats().tiers.num_loads == 1
    assert engine.stats().resident_adapters == ("alpha@1",)


def test_others_run_while_an_adapter_loads(world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    may_read = threading.Event()

    def slow_read(folder: Path, **options: Any) -> AdapterWeights:
        assert may_read.wait(30)
        return read_adapter(folder, **options)

    monkeypatch.setattr("atoll.adapters.residency.read_adapter", slow_read)
    engine.start()
    loading = submit(engine, greedy_request(PROMPT, 4, world.adapters["alpha"]))
    others = [submit(engine, greedy_request(PROMPT, 4)) for _ in range(3)]
    assert all(isinstance(other.wait(), FinishEvent) for other in others)
    assert not loading.tokens
    may_read.set()
    finish = loading.wait()
    assert isinstance(finish, FinishEvent)
    assert finish.token_ids == world.reference("alpha", PROMPT)[:4]


def test_a_corrupt_adapter_harms_its_own_requests_only(world: World, engine: Engine, tmp_path: Path) -> None:
    corrupt = copied(world.adapters["alpha"], tmp_path / "corrupt", truncate)
    adapters = [world.adapters["alpha"], corrupt, None, world.adapters["beta"], corrupt]
    completions = engine.generate([greedy_request(PROMPT, 5, adapter) for adapter in adapters])
    assert [isinstance(completion.error, AdapterInvalid) for completion in completions] == [
        False,
        True,
        False,
        False,
        True,
    ]
    for completion, name in zip(completions, ["alpha", "", None, "beta", ""], strict=True):
        if completion.error is None:
            assert completion.token_ids == world.reference(name, PROMPT)[:5]
    assert settled(engine).num_failed == 2
    (again,) = engine.generate([greedy_request(PROMPT, 5, world.adapters["alpha"])])
    assert again.error is None


def test_an_adapter_of_another_base_is_refused(world: World, engine: Engine, tmp_path: Path) -> None:
    folder = save_random_adapter(tmp_path / "wide", make_model(hidden_size=32, head_dim=16))
    foreign = StoredAdapter(name="wide", revision=0, digest="wide", folder=folder, contract=None)
    failed, well = engine.generate([greedy_request(PROMPT, 3, foreign), greedy_request(PROMPT, 3)])
    assert isinstance(failed.error, AdapterInvalid)
    assert well.token_ids == world.reference(None, PROMPT)[:3]


def test_an_adapter_that_overflows_harms_its_own_request_only(world: World, engine: Engine, tmp_path: Path) -> None:
    wild = copied(world.adapters["alpha"], tmp_path / "wild", overflow)
    adapters = [None, wild, world.adapters["gamma"]]
    before, failed, after = engine.generate([greedy_request(PROMPT, 5, adapter) for adapter in adapters])
    assert failed.error is not None
    assert "not numbers" in failed.error.what
    assert before.token_ids == world.reference(None, PROMPT)[:5]
    assert after.token_ids == world.reference("gamma", PROMPT)[:5]


# Failures


def test_a_receiver_that_raises_fails_alone(world: World, engine: Engine) -> None:
    events: SimpleQueue[Event] = SimpleQueue()

    def raises(event: Event) -> None:
        events.put(event)
        raise OSError("the client is gone")

    engine.start()
    engine.submit(replace(greedy_request(PROMPT, 8), on_event=raises))
    other = submit(engine, greedy_request(PROMPT, 8))
    finish = other.wait()
    assert isinstance(finish, FinishEvent)
    assert finish.token_ids == world.reference(None, PROMPT)[:8]
    assert isinstance(events.get(timeout=30), TokenEvent)
    last = events.get(timeout=30)
    assert isinstance(last, ErrorEvent)
    assert "the client is gone" in str(last.error)
    assert settled(engine).num_free_blocks == engine.stats().num_blocks


def test_a_failing_step_fails_its_batch_and_the_thread_lives(world: World, engine: Engine) -> None:
    poison = 17
    running = engine.base.model.register_forward_pre_hook(_raise_on(poison), with_kwargs=True)
    try:
        engine.start()
        failed = submit(engine, greedy_request((3, poison, 5))).wait()
        assert isinstance(failed, ErrorEvent)
        assert "poison" in str(failed.error)
        finish = submit(engine, greedy_request(PROMPT, 4)).wait()
        assert isinstance(finish, FinishEvent)
        assert finish.token_ids == world.reference(None, PROMPT)[:4]
    finally:
        running.remove()
    stats = settled(engine)
    assert (stats.num_failed, stats.num_finished) == (1, 1)
    assert stats.num_free_blocks == stats.num_blocks


def _raise_on(token_id: int) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        if (kwargs["input_ids"] == token_id).any():
            raise ValueError("poison")

    return hook


# Bad requests


@pytest.mark.parametrize(
    ("prompt_ids", "max_new_tokens", "words"),
    [
        ((), 1, "empty"),
        ((3, 10**6), 1, "vocabulary"),
        ((3, -1), 1, "vocabulary"),
        ((3,) * 510, 4, "max_new_tokens may be at most 2"),
        ((3,) * 600, 4, "508 tokens or less"),
        ((3,) * 600, 600, "ask for fewer"),
    ],
)
def test_requests_that_can_never_run_are_refused(
    engine: Engine, prompt_ids: tuple[int, ...], max_new_tokens: int, words: str
) -> None:
    with pytest.raises(RequestInvalid, match=words):
        engine.submit(greedy_request(prompt_ids, max_new_tokens))


def test_the_longest_request_runs(world: World, engine: Engine) -> None:
    (completion,) = engine.generate([greedy_request(make_prompt(1, engine.max_length - 2), 2)])
    assert completion.error is None
    assert len(completion.token_ids) == 2


def test_a_prompt_larger_than_the_whole_cache_is_refused(world: World) -> None:
    engine = world.engine(num_blocks=4, block_size=4)
    with pytest.raises(RequestInvalid, match="KV cache") as caught:
        engine.submit(greedy_request(make_prompt(1, 10), 8))
    assert caught.value.mend == "max_new_tokens may be at most 7 for this prompt"
    (completion,) = engine.generate([greedy_request(make_prompt(1, 10), 7)])
    assert len(completion.token_ids) == 7
    engine.close()


def test_an_id_that_is_running_is_refused(world: World, engine: Engine) -> None:
    engine.start()
    first = submit(engine, replace(greedy_request(PROMPT, 200), request_id="same"))
    second = submit(engine, replace(greedy_request(PROMPT, 2), request_id="same"))
    error = second.wait()
    assert isinstance(error, ErrorEvent)
    assert isinstance(error.error, RequestInvalid)
    engine.abort("same")
    assert isinstance(first.wait(), FinishEvent)


@pytest.mark.parametrize("limits", [{"max_batch_tokens": 0}, {"block_size": -1}, {"max_length": 100_000}])
def test_limits_out_of_range_are_refused(world: World, limits: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        world.engine(**limits)


def test_a_cache_without_room_for_a_block_is_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="kv_cache_bytes"):
        world.engine(kv_cache_bytes=100)


# Aborts and threads


def test_an_abort_in_mid_flight(world: World, engine: Engine) -> None:
    engine.start()
    aborted = submit(engine, replace(greedy_request(PROMPT, 400), request_id="long"))
    other = submit(engine, greedy_request(PROMPT, 16))
    assert aborted.first_token.wait(30)
    engine.abort("long")
    engine.abort("long")
    engine.abort("unknown")
    finish = aborted.wait()
    assert isinstance(finish, FinishEvent)
    assert finish.finish_reason == "abort"
    assert 0 < len(finish.token_ids) < 400
    assert finish.text == "".join(event.text for event in aborted.tokens)
    last = other.wait()
    assert isinstance(last, FinishEvent)
    assert last.token_ids == world.reference(None, PROMPT)
    assert settled(engine).num_free_blocks == engine.stats().num_blocks


def test_close_ends_what_is_running_and_refuses_what_comes(world: World) -> None:
    engine = world.engine(max_num_requests=1)
    engine.start()
    receivers = [submit(engine, greedy_request(PROMPT, 400)) for _ in range(3)]
    assert receivers[0].first_token.wait(30)
    engine.close()
    engine.close()
    for receiver in receivers:
        last = receiver.wait()
        assert isinstance(last, FinishEvent)
        assert last.finish_reason == "abort"
    with pytest.raises(AtollError, match="closed"):
        engine.submit(greedy_request(PROMPT, 1))
    with pytest.raises(AtollError, match="closed"):
        engine.start()


def test_many_threads_submit_and_abort(world: World) -> None:
    """Every request ends exactly once, with a prefix of its own reference, and all blocks come home."""
    engine = world.engine(num_slots=2, num_blocks=24, block_size=4, max_batch_tokens=24, max_num_requests=6)
    results: list[tuple[str | None, Receiver]] = []
    names = [*ADAPTERS, None]

    def client(client_id: int) -> None:
        for index in range(8):
            name = names[(client_id + index) % len(names)]
            request = greedy_request(PROMPT, 14, world.adapters[name] if name else None)
            results.append((name, submit(engine, request)))
            if index % 3 == 0:
                time.sleep(0.01)
                engine.abort(request.request_id)

    with engine:
        threads = [threading.Thread(target=client, args=(client_id,)) for client_id in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name, receiver in results:
            finish = receiver.wait()
            assert isinstance(finish, FinishEvent)
            if finish.finish_reason == "length":
                assert finish.token_ids == world.reference(name, PROMPT)[:14]
            else:
                assert finish.finish_reason == "abort"
                assert finish.token_ids == world.reference(name, PROMPT)[: len(finish.token_ids)]
    assert len(results) == 32
    stats = settled(engine)
    assert stats.num_free_blocks == stats.num_blocks
    assert stats.num_finished == 32
