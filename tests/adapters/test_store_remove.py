"""Taking adapters out of the store: only what nobody needs goes, and nobody who reads or writes sees half of it."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest

from atoll.adapters.peft_files import adapter_digest
from atoll.adapters.peft_io import read_adapter
from atoll.adapters.store import AdapterStore
from atoll.errors import AdapterInvalid, AdapterNotFound, UsageError
from support.adapters import save_random_adapter
from support.tiny import make_model

MODEL = make_model()


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [save_random_adapter(root / str(seed), MODEL, seed=seed) for seed in range(3)]


def objects(store: AdapterStore) -> set[str]:
    return {path.name for path in (store.root / "objects").iterdir()}


def test_a_removed_name_is_gone_with_its_files(store: AdapterStore, folders: list[Path]) -> None:
    store.publish("mood", folders[0])
    latest = store.publish("mood", folders[1])
    num_bytes = sum(path.stat().st_size for folder in folders[:2] for path in folder.glob("adapter*"))
    removed = store.remove("mood")
    assert removed.ids == ("mood@1", "mood@2")
    assert removed.freed_bytes >= num_bytes
    assert (store.names(), objects(store)) == ([], set())
    with pytest.raises(AdapterNotFound):
        store.resolve("mood")
    with pytest.raises(AdapterNotFound, match="is gone"):
        store.write_card(latest, "# late")
    assert objects(store) == set(), "a card that comes late brings no folder back"


def test_what_another_name_or_revision_needs_stays(store: AdapterStore, folders: list[Path]) -> None:
    for folder in (folders[0], folders[1], folders[0]):
        store.publish("mood", folder)
    other = store.publish("other", folders[1])
    assert store.remove("mood@1").freed_bytes == 0
    assert store.remove("mood@2").freed_bytes == 0
    assert [entry.revision for entry in store.revisions("mood")] == [3]
    assert store.remove("mood").freed_bytes > 0
    assert objects(store) == {other.digest}
    read_adapter(store.resolve("other").folder, verify=other.verify)


def test_a_number_is_not_given_twice(store: AdapterStore, folders: list[Path]) -> None:
    store.publish("mood", folders[0])
    store.publish("mood", folders[1])
    store.remove("mood@2")
    assert store.resolve("mood").id == "mood@1"
    assert store.publish("mood", folders[2]).id == "mood@3"


@pytest.mark.parametrize("adapter_id", ["nobody", "mood@9", "mood@", "mood@abcdefab"])
def test_what_is_not_there_cannot_be_removed(store: AdapterStore, folders: list[Path], adapter_id: str) -> None:
    store.publish("mood", folders[0])
    if adapter_id == "mood@":
        assert store.remove(adapter_id).ids == ("mood@1",)
        return
    with pytest.raises(AdapterNotFound):
        store.remove(adapter_id)
    assert store.names() == ["mood"]


@pytest.mark.parametrize("name", ["..", "../mood", "a/b", "", "*", "mood\0"])
def test_no_path_can_be_removed(store: AdapterStore, folders: list[Path], name: str) -> None:
    store.publish("mood", folders[0])
    with pytest.raises(UsageError):
        store.remove(name)
    assert store.names() == ["mood"]


def test_nothing_is_removed_while_a_list_of_revisions_is_damaged(store: AdapterStore, folders: list[Path]) -> None:
    store.publish("mood", folders[0])
    store.publish("other", folders[1])
    (store.root / "names" / "other.json").write_text("{")
    before = objects(store)
    with pytest.raises(AdapterInvalid, match="damaged"):
        store.remove("mood")
    assert objects(store) == before
    assert "mood" in store.names()


def test_what_a_killed_process_left_is_swept_and_what_is_no_object_stays(
    store: AdapterStore, folders: list[Path]
) -> None:
    stored = store.publish("mood", folders[0])
    for name in (".gone-" + stored.digest, ".new-x", "f" * 64, "notes"):
        shutil.copytree(stored.folder, store.root / "objects" / name)
    store.publish("other", folders[1])
    store.remove("other")
    assert objects(store) == {stored.digest, "notes"}


def test_a_store_from_before_has_no_next_number(store: AdapterStore, folders: list[Path]) -> None:
    store.publish("mood", folders[0])
    path = store.root / "names" / "mood.json"
    fields = json.loads(path.read_text())
    del fields["next_revision"]
    path.write_text(json.dumps(fields))
    assert store.publish("mood", folders[1]).id == "mood@2"


def test_readers_beside_publishing_and_removing_see_all_of_an_adapter_or_nothing(
    store: AdapterStore, folders: list[Path]
) -> None:
    digests = {adapter_digest(folder) for folder in folders}
    stop = threading.Event()
    wrong: list[str] = []
    num_read = 0

    def change() -> None:
        for turn in range(30):
            store.publish("mood", folders[turn % 3])
            if turn % 2:
                store.remove("mood")
        stop.set()

    changing = threading.Thread(target=change)
    changing.start()
    while not stop.is_set():
        try:
            stored = store.resolve("mood")
            read_adapter(stored.folder, verify=stored.verify)
            num_read += 1
            if stored.digest not in digests:
                wrong.append(stored.id)
            assert all(adapter.name == "mood" for adapter in store.list())
        except (AdapterNotFound, AdapterInvalid) as error:
            if "damaged" in str(error) and "no adapter" not in str(error):
                wrong.append(str(error))
    changing.join()
    assert wrong == []
    assert num_read
    store.publish("mood", folders[0])
    assert objects(store) == {adapter_digest(folders[0])} | {entry.digest for entry in store.revisions("mood")}
