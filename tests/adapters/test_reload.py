"""A new revision under an old name: new requests get it at once, running ones finish on the one they began with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from atoll.adapters import catalog as catalog_module
from atoll.adapters.catalog import AdapterCatalog
from atoll.adapters.peft_files import CONFIG_NAME, WEIGHTS_NAME
from atoll.adapters.peft_io import read_adapter
from atoll.adapters.store import StoredAdapter
from atoll.engine import Event, FinishEvent, TokenEvent
from atoll.errors import AdapterInvalid
from support.adapters import save_random_adapter
from support.engines import World, greedy_request, make_prompt, make_world
from support.residency import LAYER, PLAIN, Harness
from support.tiny import make_model

PROMPT = make_prompt(1, 20)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(tmp_path)
    yield harness
    harness.residency.close()


def is_in(harness: Harness, slot: int | None, folder: Path) -> bool:
    return slot is not None and torch.equal(harness.in_slot(slot), read_adapter(folder).modules[LAYER].a)


def test_a_published_revision_takes_another_slot_than_the_one_in_use(harness: Harness) -> None:
    old = harness.adapter("mood", 1)
    slot = harness.acquire(old)
    new = harness.adapter("mood", 2)
    assert harness.store.resolve("mood") == new
    other = harness.acquire(harness.store.resolve("mood"))
    assert other != slot
    assert is_in(harness, slot, old.folder)
    assert is_in(harness, other, new.folder)
    assert harness.acquire(old) == slot, "a preempted request gets the weights that it began with"
    assert [adapter.id for adapter in harness.residency.loaded] == ["mood@2", "mood@1"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def test_a_running_request_finishes_on_its_revision(world: World, tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    for seed in (1, 2):
        folder = save_random_adapter(tmp_path / str(seed), make_model(), seed=seed)
        world.adapters[f"mood@{seed}"] = StoredAdapter("mood", 0, "", folder, None)
    harness.store.publish("mood", tmp_path / "1")
    expected = {name: world.reference(name, PROMPT) for name in ("mood@1", "mood@2")}
    assert expected["mood@1"] != expected["mood@2"]
    events: SimpleQueue[Event] = SimpleQueue()
    with world.engine(num_slots=2) as engine:
        engine.start()
        running = greedy_request(PROMPT, 450, harness.store.resolve("mood"))
        engine.submit(replace(running, on_event=events.put))
        while not isinstance(events.get(timeout=10), TokenEvent):
            pass
        assert harness.store.publish("mood", tmp_path / "2").id == "mood@2"
        (renewed,) = engine.generate([greedy_request(PROMPT, 16, harness.store.resolve("mood"))])
        assert engine.stats().resident_adapters == ("mood@1", "mood@2")
        engine.abort(running.request_id)
        while not isinstance(finish := events.get(timeout=10), FinishEvent):
            pass
    assert renewed.token_ids == expected["mood@2"]
    assert finish.finish_reason == "abort", "it was still running"
    assert finish.token_ids[:16] == expected["mood@1"]


# Folders outside of the store


@pytest.fixture
def catalog(harness: Harness) -> AdapterCatalog:
    return AdapterCatalog(harness.store, [harness.folder])


def local(harness: Harness, seed: int) -> Path:
    return save_random_adapter(harness.folder / f"local-{seed}", PLAIN, seed=seed, target_modules=["q_proj"])


def replace_file(source: Path, target: Path) -> None:
    """As a careful writer does: the server sees the old file or the new one."""
    shutil.copyfile(source, target.with_suffix(".tmp"))
    os.replace(target.with_suffix(".tmp"), target)


def test_a_replaced_folder_is_another_adapter_at_once(harness: Harness, catalog: AdapterCatalog) -> None:
    first, second = local(harness, 1), local(harness, 2)
    old = catalog.resolve("local-1", "local")
    slot = harness.acquire(old)
    replace_file(second / WEIGHTS_NAME, first / WEIGHTS_NAME)
    new = catalog.resolve("local-1", "local")
    assert new.digest != old.digest
    assert is_in(harness, harness.acquire(new), second)
    assert not is_in(harness, slot, second)


def test_files_of_the_same_size_and_time_are_told_apart(harness: Harness, catalog: AdapterCatalog) -> None:
    """File systems count time in ticks, and a writer may set it back."""
    first, second = local(harness, 1), local(harness, 2)
    time_ns = (first / WEIGHTS_NAME).stat().st_mtime_ns
    old = catalog.resolve("local-1", "local")
    (first / WEIGHTS_NAME).write_bytes((second / WEIGHTS_NAME).read_bytes())
    os.utime(first / WEIGHTS_NAME, ns=(time_ns, time_ns))
    assert catalog.resolve("local-1", "local").digest != old.digest


def test_unchanged_files_are_hashed_once(
    harness: Harness, catalog: AdapterCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "SETTLED_AFTER_NS", -1)
    local(harness, 1)
    digest = catalog.resolve("local-1", "local").digest
    monkeypatch.setattr(catalog_module, "adapter_digest", lambda folder: pytest.fail("hashed again"))
    assert catalog.resolve("local-1", "local").digest == digest


def test_what_was_resolved_before_a_change_is_never_answered_with_other_weights(
    harness: Harness, catalog: AdapterCatalog
) -> None:
    first, second = local(harness, 1), local(harness, 2)
    old = catalog.resolve("local-1", "local")
    replace_file(second / WEIGHTS_NAME, first / WEIGHTS_NAME)
    with pytest.raises(AdapterInvalid, match="changed while loading") as caught:
        harness.acquire(old)
    assert caught.value.mend == "send the request again"
    assert harness.residency.stats().host_bytes == 0, "its room is given back"
    assert is_in(harness, harness.acquire(catalog.resolve("local-1", "local")), second)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_file_that_changes_while_it_is_read(
    harness: Harness, catalog: AdapterCatalog, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It changes after the header was checked, and before the weights are read."""
    first, second = local(harness, 1), local(harness, 2)
    (second / CONFIG_NAME).write_text((second / CONFIG_NAME).read_text() + " ")

    def change(*args: Any, **options: Any) -> torch.Tensor:
        (first / name).write_bytes((second / name).read_bytes())
        return allocate(*args, **options)

    old = catalog.resolve("local-1", "local")
    before = read_adapter(first).modules[LAYER].a
    allocate = harness.residency._allocate
    monkeypatch.setattr(harness.residency, "_allocate", change)
    if name == WEIGHTS_NAME:
        with pytest.raises(AdapterInvalid, match="changed while loading"):
            harness.acquire(old)
    else:  # its bytes are in memory since before the change, so they are the ones that were asked for
        slot = harness.acquire(old)
        assert slot is not None
        assert torch.equal(harness.in_slot(slot), before)
