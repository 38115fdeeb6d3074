"""The store: revisions, digests, and a state that is whole at every instant."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from atoll.adapters.catalog import AdapterCatalog
from atoll.adapters.contract import CONTRACT_NAME
from atoll.adapters.peft_files import CONFIG_NAME, WEIGHTS_NAME
from atoll.adapters.peft_io import read_adapter
from atoll.adapters.store import AdapterStore, adapter_digest
from atoll.errors import AdapterInvalid, AdapterNotFound, UsageError
from support.adapters import save_random_adapter
from support.tiny import make_model

MODEL = make_model()


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


def test_revisions_count_up_and_the_same_content_is_kept_once(store: AdapterStore, tmp_path: Path) -> None:
    one = save_random_adapter(tmp_path / "one", MODEL, seed=1)
    two = save_random_adapter(tmp_path / "two", MODEL, seed=2)
    assert store.publish("mood", one).id == "mood@1"
    assert store.publish("mood", one).id == "mood@1"
    assert store.publish("mood", two).id == "mood@2"
    assert store.publish("other", two).folder == store.resolve("mood").folder
    assert store.resolve("mood").revision == 2
    assert store.resolve("mood@1").digest == adapter_digest(one)
    assert store.resolve(f"mood@{adapter_digest(one)[:12]}").revision == 1
    assert [adapter.id for adapter in store.list()] == ["mood@2", "other@1"]
    read_adapter(store.resolve("mood@1").folder)


def test_files_that_vanish_while_they_are_read_are_the_adapters_fault(
    store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_random_adapter(tmp_path / "one", MODEL)
    open_file = Path.open

    def vanished(path: Path, *arguments: Any, **named: Any) -> Any:
        if path == folder / WEIGHTS_NAME:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return open_file(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", vanished)
    with pytest.raises(AdapterInvalid, match="cannot be read") as caught:
        store.publish("mood", folder)
    assert caught.value.where == str(folder)
    assert store.names() == []


def test_what_cannot_be_read_is_left_out_of_the_list_alone(
    store: AdapterStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = {name: save_random_adapter(tmp_path / name, MODEL, seed=i) for i, name in enumerate("abc")}
    for name, folder in folders.items():
        store.publish(name, folder)
    (store.resolve("b").folder / CONTRACT_NAME).write_text('{"format_version": 9}')  # as a later Atoll may write it
    (store.root / "names" / "c.json").write_text("{")
    for _ in range(2):
        assert [adapter.name for adapter in store.list()] == ["a"]
    assert [record.args[0] for record in caplog.records if record.args] == ["b", "c"]
    for name in "bc":
        with pytest.raises(AdapterInvalid):
            store.resolve(name)


def test_what_is_not_there_is_told_with_a_hint(store: AdapterStore, tmp_path: Path) -> None:
    store.publish("sentiment", save_random_adapter(tmp_path / "a", MODEL))
    with pytest.raises(AdapterNotFound, match="did you mean 'sentiment'"):
        store.resolve("sentimnt")
    with pytest.raises(AdapterNotFound, match="it has 1"):
        store.resolve("sentiment@7")


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "A", "a\0b", "a" * 65, ".hidden", "a\n", "-x"])
def test_no_path_hides_in_a_name(store: AdapterStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        store.resolve(name)
    with pytest.raises(UsageError):
        store.publish(name, save_random_adapter(tmp_path / "a", MODEL))


def test_a_bad_folder_leaves_the_store_as_it_was(store: AdapterStore, tmp_path: Path) -> None:
    folder = save_random_adapter(tmp_path / "a", MODEL)
    (folder / WEIGHTS_NAME).write_bytes(b"not safetensors")
    with pytest.raises(AdapterInvalid):
        store.publish("bad", folder)
    assert store.names() == []


def test_a_damaged_list_of_revisions_is_told(store: AdapterStore, tmp_path: Path) -> None:
    store.publish("mood", save_random_adapter(tmp_path / "a", MODEL))
    (store.root / "names" / "mood.json").write_text("{")
    with pytest.raises(AdapterInvalid, match="damaged"):
        store.resolve("mood")


# Importing takes seconds, so one process forks a publisher for each line that it reads.
PUBLISH_FOREVER = """
import os, sys
from pathlib import Path
import atoll.adapters.peft_io  # before the forks: it takes longer than they live
from atoll.adapters.store import AdapterStore
store = AdapterStore(Path(sys.argv[1]))
for _ in sys.stdin:
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("killed", flush=True)
    while not pid:
        for folder in sys.argv[2:]:
            store.publish("mood", Path(folder))
"""


def test_kill_while_publishing_never_leaves_a_torn_adapter(store: AdapterStore, tmp_path: Path) -> None:
    folders = [str(save_random_adapter(tmp_path / str(seed), MODEL, seed=seed)) for seed in range(2)]
    command = [sys.executable, "-c", PUBLISH_FOREVER, str(store.root), *folders]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for delay_s in [0.0, 0.3] + [random.Random(seed).uniform(0.001, 0.06) for seed in range(18)]:
            process.stdin.write("publish\n")
            publisher = int(process.stdout.readline())
            time.sleep(delay_s)
            os.kill(publisher, signal.SIGKILL)
            assert process.stdout.readline() == "killed\n"
            for adapter in store.list():
                assert adapter_digest(adapter.folder) == adapter.digest
                read_adapter(adapter.folder)
        process.stdin.close()
    assert store.list(), "somebody published in all that time"
    store.publish("other", save_random_adapter(tmp_path / "other", MODEL, seed=2))
    assert not list((store.root / "objects").glob(".*")), "what killed processes left is swept away"
    assert store.publish("mood", Path(folders[0])).digest == adapter_digest(Path(folders[0]))


PUBLISH_WITH_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from atoll.adapters.store import AdapterStore
from atoll.errors import AtollError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    AdapterStore(Path(sys.argv[1])).publish("mood", Path(sys.argv[2]))
except AtollError as error:
    print(error)
"""


def test_a_full_disk_is_told_and_leaves_the_store_as_it_was(store: AdapterStore, tmp_path: Path) -> None:
    old = store.publish("mood", save_random_adapter(tmp_path / "old", MODEL, seed=0))
    new = save_random_adapter(tmp_path / "new", MODEL, seed=1)
    command = [sys.executable, "-c", PUBLISH_WITH_A_FULL_DISK, str(store.root), str(new)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "mood could not be stored" in output
    assert "mend:" in output
    assert store.resolve("mood") == old
    assert [path.name for path in (store.root / "objects").iterdir()] == [old.digest]
    assert store.publish("mood", new).revision == 2


def test_local_adapters_are_found_below_their_roots_only(store: AdapterStore, tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    inside = save_random_adapter(root / "team" / "mood", MODEL)
    save_random_adapter(outside / "secret", MODEL)
    (root / "link").symlink_to(outside / "secret")
    (root / "files").mkdir()
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        (root / "files" / name).symlink_to(outside / "secret" / name)
    catalog = AdapterCatalog(store, [root])
    assert catalog.resolve("team/mood", "local").folder == inside
    assert catalog.resolve(str(inside), "local").digest == adapter_digest(inside)
    for path in ("../outside/secret", str(outside / "secret"), "link", "files", "team", "team/../../outside/secret"):
        with pytest.raises(AdapterNotFound):
            catalog.resolve(path, "local")
    with pytest.raises(AdapterNotFound):
        AdapterCatalog(store).resolve(str(inside), "local")
    for bad, source in (("x\0y", "local"), ("", None), ("a" * 600, None), ("mood", "hub")):
        with pytest.raises(UsageError):
            catalog.resolve(bad, source)


def test_a_changed_local_adapter_gets_another_digest(store: AdapterStore, tmp_path: Path) -> None:
    folder = save_random_adapter(tmp_path / "root" / "a", MODEL, seed=1)
    catalog = AdapterCatalog(store, [tmp_path / "root"])
    before = catalog.resolve("a", "local").digest
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps(config | {"lora_alpha": 99}))
    assert catalog.resolve("a", "local").digest != before
