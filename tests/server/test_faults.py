"""Twenty random instants of every fault: nothing is lost, errors are clear, and the server goes on."""

from __future__ import annotations

import json
import random
import re
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from atoll.adapters.peft_files import CONFIG_NAME, WEIGHTS_NAME, adapter_digest
from atoll.adapters.peft_io import read_adapter
from atoll.adapters.store import AdapterStore
from atoll.server.keys.accounts import Accounts
from atoll.server.keys.database import Database, database_url
from atoll.server.keys.keys import KeyStore, NewKey
from atoll.server.keys.usage import UsageStore
from atoll.server.settings import ServerSettings
from support.adapters import save_random_adapter
from support.hubs import fake_hub
from support.metered import Metered, metered_server
from support.scale import scaled
from support.servers import Served, samples, served_world, wait_until
from support.tiny import make_model

NUM_INSTANTS = 20
NUM_TOKENS = 3
# One for all: each new client reads the certificates of all authorities.
CLIENT = httpx.Client(timeout=60)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Room for few requests, so that one which is never given back is missed at once."""
    folder = tmp_path_factory.mktemp("served")
    with served_world(folder, settings=ServerSettings(max_open_requests=4), num_slots=2, max_num_requests=4) as served:
        yield served


def is_idle(served: Served) -> bool:
    stats = served.engine.stats()
    return stats.num_running == stats.num_waiting == 0 and stats.num_free_blocks == stats.num_blocks


def generate(url: str, headers: dict[str, str] | None = None, **parameters: Any) -> httpx.Response:
    wanted = {"max_new_tokens": NUM_TOKENS, "ignore_eos_token": True, "details": True} | parameters
    return CLIENT.post(f"{url}/generate", json={"inputs": "Hello", "parameters": wanted}, headers=headers)


def ids(answer: httpx.Response) -> tuple[int, ...]:
    assert answer.status_code == 200, answer.text
    return tuple(token["id"] for token in answer.json()["details"]["tokens"])


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_a_client_that_vanishes_at_any_instant_leaves_nothing_behind(served: Served, path: str) -> None:
    dice = random.Random(path)
    expected = ids(generate(served.url, adapter_id="alpha"))
    num_cancelled_before, num_generated_before = num_cancelled(served), served.engine.stats().num_generated_tokens
    lengths = [dice.randint(1, 450) for _ in range(NUM_INSTANTS)]
    for length in lengths:
        parameters = {"adapter_id": "beta", "max_new_tokens": length, "ignore_eos_token": True}
        body = json.dumps({"inputs": "Hello", "parameters": parameters})
        head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as client:
            if dice.random() < 0.5:  # closing resets the connection instead of ending it
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(f"POST {path} HTTP/1.1\r\n{head}{body}".encode())
            time.sleep(dice.uniform(0, 0.1))
        wait_until(lambda: is_idle(served))
        assert ids(generate(served.url, adapter_id="alpha")) == expected
    assert num_cancelled(served) - num_cancelled_before > NUM_INSTANTS / 5
    num_generated = served.engine.stats().num_generated_tokens - num_generated_before - NUM_TOKENS * NUM_INSTANTS
    assert num_generated < 0.9 * sum(lengths), "nobody waits for the rest"


def num_cancelled(served: Served) -> float:
    return samples(served).get("atoll_requests_total,adapter=beta,outcome=cancelled", 0)


def make_key(folder: Path) -> dict[str, str]:
    database = Database(database_url(str(folder / "atoll.db")))
    _, shown = KeyStore(database).create(NewKey(scopes=frozenset({"use", "admin"})))
    database.close()
    return {"Authorization": f"Bearer {shown}"}


def test_a_full_disk_loses_no_usage_and_gives_nothing_away(tmp_path: Path, tiny_base_folder: Path) -> None:
    dice = random.Random(3)
    headers = make_key(tmp_path)
    num_answered = 0
    with metered_server(tiny_base_folder, tmp_path) as server:
        num_answered += generate(server.url, headers).status_code == 200
        (journal,) = (tmp_path / "journals").rglob("*.jsonl")
        for _ in range(NUM_INSTANTS):
            with server.full_disk(journal.stat().st_size + dice.randint(-300, 500)):
                for _ in range(20):
                    answer = generate(server.url, headers)
                    num_answered += answer.status_code == 200
                    if answer.status_code != 200:
                        break
            assert (answer.status_code, answer.json()["error_type"]) == (503, "overloaded")
            assert "usage cannot be recorded" in answer.json()["error"]
            assert generate(server.url, headers).status_code == 200
            num_answered += 1
    database = Database(database_url(str(tmp_path / "atoll.db")))
    # Another one takes over what the killed one has left.
    with Accounts(database, tmp_path / "journals"):
        pass
    (row,) = UsageStore(database).report()
    assert (row.sums.requests, row.sums.generated_tokens) == (num_answered, NUM_TOKENS * num_answered)
    database.close()


def variant(folder: Path, number: int) -> Path:
    """A copy of an adapter that is another one: its scaling differs."""
    copy = folder.parent / f"{folder.name}-{number}"
    shutil.copytree(folder, copy)
    fields = json.loads((copy / CONFIG_NAME).read_text())
    (copy / CONFIG_NAME).write_text(json.dumps(fields | {"lora_alpha": number + 1}))
    return copy


def load(server: Metered, headers: dict[str, str], folder: Path) -> httpx.Response:
    body = {"lora_name": "mood", "lora_path": str(folder)}
    return CLIENT.post(f"{server.url}/v1/load_lora_adapter", json=body, headers=headers)


def check_store(store: AdapterStore) -> None:
    """Whatever a name points to is whole."""
    for name in store.names():
        for entry in store.revisions(name):
            stored = store.resolve(f"{name}@{entry.revision}")
            assert adapter_digest(stored.folder) == entry.digest
            read_adapter(stored.folder, verify=stored.verify)


def check_refused(answer: httpx.Response, folder: Path) -> None:
    """A full disk is told, in either dialect, and no path of the server."""
    assert answer.status_code == 503, answer.text
    assert answer.headers["retry-after"] == "5"
    error = answer.json()["error"]
    if isinstance(error, dict):
        assert (error["code"], error["type"]) == ("storage_error", "server_error")
        error = error["message"]
    assert re.fullmatch(r"[\w ]+ could not be (kept|stored) \(File too large\); see that the disk has room .*", error)
    assert str(folder) not in answer.text


def test_a_full_disk_is_told_wherever_adapters_are_kept(tmp_path: Path, tiny_base_folder: Path) -> None:
    dice = random.Random(4)
    headers = make_key(tmp_path)
    adapter = save_random_adapter(tmp_path / "adapter", make_model())
    num_bytes = (adapter / WEIGHTS_NAME).stat().st_size
    store = AdapterStore(tmp_path / "store")
    with fake_hub() as hub:
        settings = ServerSettings(
            remote_sources=("hub",),
            hub_endpoint=hub.url,
            private_adapter_hosts=("127.0.0.1",),
            adapter_cache=tmp_path / "cache",
        )
        with metered_server(tiny_base_folder, tmp_path, settings) as server:
            assert load(server, headers, adapter).status_code == 200
            for number in range(NUM_INSTANTS):
                own = variant(adapter, number)
                hub.add(f"org/{number}", own)
                mix = {"ids": ["mood", "mood@1"], "weights": [1.0, 1.0 + number], "merge_strategy": "linear"}
                for ask in (
                    partial(generate, server.url, headers, merged_adapters=mix),
                    partial(generate, server.url, headers, adapter_id=f"org/{number}", adapter_source="hub"),
                    partial(load, server, headers, own),
                ):
                    with server.full_disk(dice.randrange(num_bytes)):
                        check_refused(ask(), tmp_path)
                    assert ask().status_code == 200
                assert store.resolve("mood").digest == adapter_digest(own)
    assert len(store.revisions("mood")) == 1 + NUM_INSTANTS
    check_store(store)
    left = [path for folder in ("store", "cache") for path in (tmp_path / folder).rglob(".*") if path.name != ".lock"]
    assert left == []


def test_a_server_that_is_killed_while_it_stores_adapters_loses_none_that_it_acknowledged(
    tmp_path: Path, tiny_base_folder: Path
) -> None:
    dice = random.Random(5)
    headers = make_key(tmp_path)
    adapter = save_random_adapter(tmp_path / "adapter", make_model())
    store = AdapterStore(tmp_path / "store")
    acknowledged: list[str] = []
    number = 0
    num_kills = scaled(4, NUM_INSTANTS)
    for _ in range(num_kills):
        with metered_server(tiny_base_folder, tmp_path) as server:
            # The first one brings torch's reader, which takes longer than all the others.
            assert load(server, headers, adapter).status_code == 200
            acknowledged.append(adapter_digest(adapter))
            killer = threading.Timer(dice.uniform(0, 0.3), server.kill)
            killer.start()
            try:
                while True:
                    number += 1
                    own = variant(adapter, number)
                    assert load(server, headers, own).status_code == 200
                    acknowledged.append(adapter_digest(own))
            except httpx.HTTPError:
                killer.join()
        check_store(store)
    assert len(acknowledged) > num_kills, "none was stored but the first of each server"
    stored = [entry.digest for entry in store.revisions("mood")]
    assert set(acknowledged) <= set(stored)
    assert stored[-1] in (acknowledged[-1], adapter_digest(own))


class Tampering:
    """What happens to the files of an adapter while a server answers with them; each leaves one of two contents."""

    def __init__(self, folder: Path, contents: list[bytes], dice: random.Random) -> None:
        self._folder = folder
        self._contents = contents
        self._dice = dice

    @property
    def _weights(self) -> Path:
        return self._folder / WEIGHTS_NAME

    def replace(self) -> None:
        new = self._weights.with_suffix(".new")
        new.write_bytes(self._dice.choice(self._contents))
        new.replace(self._weights)

    def write_slowly(self) -> None:
        content = self._dice.choice(self._contents)
        middle = self._dice.randrange(len(content))
        with self._weights.open("wb", buffering=0) as file:
            file.write(content[:middle])
            time.sleep(self._dice.uniform(0, 0.1))
            file.write(content[middle:])

    def truncate(self) -> None:
        with self._weights.open("r+b") as file:
            file.truncate(self._dice.randrange(len(self._contents[0])))
        time.sleep(self._dice.uniform(0, 0.1))
        self.replace()

    def delete(self) -> None:
        self._weights.unlink()
        time.sleep(self._dice.uniform(0, 0.1))
        self.replace()

    def move_away(self) -> None:
        away = self._folder.with_name("away")
        self._folder.rename(away)
        time.sleep(self._dice.uniform(0, 0.1))
        away.rename(self._folder)


def test_files_that_change_under_a_server_give_the_old_answer_the_new_one_or_a_named_error(
    served: Served, tmp_path: Path
) -> None:
    dice = random.Random(6)
    root = served.world.base_folder.parent
    folders = [save_random_adapter(tmp_path / str(seed), make_model(), seed=seed) for seed in (21, 22)]
    contents = [(folder / WEIGHTS_NAME).read_bytes() for folder in folders]
    shutil.copytree(folders[0], root / "changing")
    expected = []
    for folder in folders:
        served.store.publish(f"copy{folder.name}", folder)
        expected.append(ids(generate(served.url, adapter_id=f"copy{folder.name}", max_new_tokens=8)))
    assert expected[0] != expected[1]
    answers: list[httpx.Response] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(generate(served.url, adapter_id="changing", adapter_source="local", max_new_tokens=8))

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for client in clients:
        client.start()
    tampering = Tampering(root / "changing", contents, dice)
    ways = [tampering.replace, tampering.write_slowly, tampering.truncate, tampering.delete, tampering.move_away]
    for number in range(scaled(NUM_INSTANTS, 10 * NUM_INSTANTS)):
        time.sleep(dice.uniform(0, 0.2))
        ways[number % len(ways)]()
    stop.set()
    for client in clients:
        client.join()
    good = {ids(answer) for answer in answers if answer.status_code == 200}
    bad = [answer for answer in answers if answer.status_code != 200]
    assert good == set(expected)
    assert {(answer.status_code, answer.json()["error_type"]) for answer in bad} == {(424, "generation")}
    assert not [answer.text for answer in bad if str(root) in answer.text]
    rests_with = contents.index((root / "changing" / WEIGHTS_NAME).read_bytes())
    last = generate(served.url, adapter_id="changing", adapter_source="local", max_new_tokens=8)
    assert ids(last) == expected[rests_with]
    wait_until(lambda: is_idle(served))
