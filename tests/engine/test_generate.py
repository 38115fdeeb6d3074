"""Engine.generate and the limits of an engine's cache."""

from __future__ import annotations

import pytest

from atoll.adapters.residency import AdapterResidency
from atoll.adapters.store import StoredAdapter
from atoll.engine import Engine, EngineConfig
from atoll.engine.core import EngineCore
from atoll.errors import RequestInvalid, UsageError
from support.engines import World, greedy_request, make_prompt
from support.servers import wait_until

PROMPT = make_prompt(0, 9)


@pytest.mark.parametrize("is_threaded", [False, True])
def test_generate_reports_progress_and_keeps_the_order(world: World, engine: Engine, is_threaded: bool) -> None:
    if is_threaded:
        engine.start()
    requests = [greedy_request(make_prompt(seed, 4), 1 + 3 * (seed % 3)) for seed in range(6)]
    requests.insert(2, greedy_request((), 1))
    progress: list[tuple[int, int]] = []
    completions = engine.generate(requests, on_progress=lambda done, total: progress.append((done, total)))
    assert [completion.request_id for completion in completions] == [request.request_id for request in requests]
    assert isinstance(completions[2].error, RequestInvalid)
    assert [len(completion.token_ids) for completion in completions] == [1, 4, 0, 7, 1, 4, 7]
    assert progress == [(done, 7) for done in range(1, 8)]


def test_generate_aborts_the_rest_when_it_is_interrupted(world: World, engine: Engine) -> None:
    def interrupt(num_done: int, num_requests: int) -> None:
        raise KeyboardInterrupt

    requests = [greedy_request(PROMPT, 2), *(greedy_request(PROMPT, 300) for _ in range(3))]
    with pytest.raises(KeyboardInterrupt):
        engine.generate(requests, on_progress=interrupt)
    (completion,) = engine.generate([greedy_request(PROMPT, 3)])
    assert completion.token_ids == world.reference(None, PROMPT)[:3]
    assert engine.stats().num_running == 0


def test_generate_of_nothing(engine: Engine) -> None:
    assert engine.generate([]) == []


def test_the_same_id_twice_is_refused(engine: Engine) -> None:
    request = greedy_request(PROMPT, 1)
    with pytest.raises(RequestInvalid, match="same id"):
        engine.generate([request, request])


def test_the_cache_is_no_larger_than_all_requests_could_fill(world: World) -> None:
    engine = world.engine(max_num_requests=2, max_length=100, block_size=16)
    assert engine.stats().num_blocks == 2 * 7
    assert engine.config == EngineConfig(max_num_requests=2, max_length=100, block_size=16)
    engine.close()


def test_a_request_that_cannot_be_queued_fails_alone(
    world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefetch = AdapterResidency.prefetch

    def without_threads(residency: AdapterResidency, adapter: StoredAdapter) -> None:
        if adapter.name == "alpha":
            raise RuntimeError("can't start new thread")
        prefetch(residency, adapter)

    monkeypatch.setattr(AdapterResidency, "prefetch", without_threads)
    adapters = (None, world.adapters["alpha"], world.adapters["beta"])
    before, failed, after = engine.generate([greedy_request(PROMPT, 4, adapter) for adapter in adapters])
    assert "can't start new thread" in str(failed.error)
    assert before.token_ids == world.reference(None, PROMPT)[:4]
    assert after.token_ids == world.reference("beta", PROMPT)[:4]
    stats = engine.stats()
    assert (stats.num_waiting, stats.num_failed, stats.num_finished) == (0, 1, 2)


def test_a_request_ends_even_if_its_slot_cannot_be_given_back(
    world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = AdapterResidency.release

    def without_threads(residency: AdapterResidency, digest: str) -> None:
        release(residency, digest)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(AdapterResidency, "release", without_threads)
    requests = [greedy_request(PROMPT, 4, world.adapters["alpha"]), greedy_request(PROMPT, 9)]
    first, other = engine.generate(requests)
    assert first.token_ids == world.reference("alpha", PROMPT)[:4]
    assert other.token_ids == world.reference(None, PROMPT)[:9]


def test_an_inbox_that_cannot_be_read_ends_nothing_for_good(
    world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(core: EngineCore, request_id: str) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(EngineCore, "abort", fails)
    engine.abort("unknown")
    (completion,) = engine.generate([greedy_request(PROMPT, 4)])
    assert completion.token_ids == world.reference(None, PROMPT)[:4]


def test_a_pinned_adapter_stays_while_others_come_and_go(world: World) -> None:
    with world.engine(num_slots=2) as engine:
        pinned, *others = world.adapters.values()
        engine.pin(pinned)
        with pytest.raises(UsageError, match="cannot be pinned"):
            engine.pin(others[0])
        engine.generate([greedy_request(PROMPT, 4, adapter) for adapter in (*others, *others)])
        # Loading goes on beside the steps, and may end after them.
        wait_until(lambda: [item.tier for item in engine.adapters() if item.is_pinned] == ["device"])
        (resident,) = [item for item in engine.adapters() if item.is_pinned]
        assert (resident.adapter.id, resident.tier) == (pinned.id, "device")
        engine.generate([greedy_request(PROMPT, 4, pinned)])
        engine.unpin(pinned.name)
        engine.generate([greedy_request(PROMPT, 4, adapter) for adapter in others])
        assert all(item.adapter.id != pinned.id for item in engine.adapters() if item.tier == "device")
