"""Adapters come and go while the server runs, as with vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from atoll.server.keys.accounts import Accounts
from atoll.server.keys.database import Database, database_url
from atoll.server.keys.keys import KeyStore, NewKey
from support.adapters import save_random_adapter
from support.servers import Served, served_world, wait_until, write_contract
from support.tiny import make_model


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    """A server whose store a test may change."""
    with served_world(tmp_path) as served:
        yield served


def load(served: Served, name: str, path: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path} | fields)


def unload(served: Served, name: str) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/unload_lora_adapter", json={"lora_name": name})


def names(served: Served) -> list[str]:
    return [model["id"] for model in httpx.get(f"{served.url}/v1/models").json()["data"]]


def complete(served: Served, model: str) -> httpx.Response:
    body = {"model": model, "prompt": "The quick", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    return httpx.post(f"{served.url}/v1/completions", json=body)


def text(served: Served, model: str) -> str:
    return str(complete(served, model).json()["choices"][0]["text"])


def test_a_folder_is_loaded_and_a_new_version_takes_its_place(own: Served, tmp_path: Path) -> None:
    assert complete(own, "new").status_code == 404
    save_random_adapter(tmp_path / "new", make_model(), seed=1)
    answer = load(own, "new", "new")
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'new' added successfully.")
    assert "new" in names(own)
    first = text(own, "new")
    assert first != text(own, "")
    save_random_adapter(tmp_path / "newer", make_model(), seed=2)
    assert load(own, "new", str(tmp_path / "newer")).status_code == 200
    assert text(own, "new") != first
    assert text(own, "new@1") == first
    assert load(own, "new", "newer", load_inplace=False).status_code == 400
    assert own.store.resolve("new").revision == 2


def test_an_unloaded_name_is_unknown_until_it_is_loaded_again(own: Served, tmp_path: Path) -> None:
    before = text(own, "alpha")
    assert unload(own, "alpha").status_code == 200
    for name in ("alpha", "alpha@1"):
        assert complete(own, name).json()["error"]["code"] == "model_not_found"
    assert "alpha" not in names(own)
    assert httpx.get(f"{own.url}/v1/models/alpha").status_code == 404
    assert unload(own, "alpha").status_code == 404
    assert complete(own, "beta").status_code == 200
    assert load(own, "alpha", "alpha").status_code == 200
    assert text(own, "alpha") == before


@pytest.mark.parametrize(
    ("name", "path", "status"),
    [
        ("new", "nowhere", 404),
        ("new", "../..", 404),
        ("new", "/etc", 404),
        ("new", "a\0b", 400),
        ("new", "", 400),
        ("New Name", "alpha", 400),
        ("../new", "alpha", 400),
    ],
)
def test_what_cannot_be_loaded_is_refused(own: Served, name: str, path: str, status: int) -> None:
    before = names(own)
    assert load(own, name, path).status_code == status
    assert names(own) == before


def test_an_adapter_of_another_base_is_refused(own: Served, tmp_path: Path) -> None:
    folder = save_random_adapter(tmp_path / "other", make_model(), seed=3)
    write_contract(folder, own.world.base_folder, "other", "{text}")
    contract = (folder / "atoll.json").read_text()
    digest = own.engine.base.digest
    assert digest in contract
    (folder / "atoll.json").write_text(contract.replace(digest, digest[:-1] + ("0" if digest[-1] != "0" else "1")))
    answer = load(own, "other", "other")
    assert answer.status_code == 400
    assert "was trained on" in answer.json()["error"]["message"]


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[tuple[Served, KeyStore]]:
    """A server that wants keys."""
    database = Database(database_url(str(tmp_path / "atoll.db")))
    store = KeyStore(database)
    with (
        Accounts(database, tmp_path / "journals", refresh_s=0.02, fold_s=0.02) as accounts,
        served_world(tmp_path, accounts=accounts) as served,
    ):
        yield served, store
    database.close()


def test_only_admins_load_and_unload_and_only_what_is_theirs(keys: tuple[Served, KeyStore]) -> None:
    served, store = keys
    patterns = ("team-*", "alpha", "local:alpha")
    shown = {
        "user": store.create(NewKey())[1],
        "admin": store.create(NewKey(scopes=frozenset({"use", "admin"}), adapters=patterns))[1],
    }

    def post(path: str, who: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{served.url}/v1/{path}", json=body, headers={"Authorization": f"Bearer {shown[who]}"})

    wait_until(lambda: post("completions", "user", {"prompt": "x", "max_tokens": 1}).status_code == 200)
    wait_until(lambda: post("completions", "admin", {"prompt": "x", "max_tokens": 1}).status_code == 200)
    body = {"lora_name": "team-a", "lora_path": "alpha"}
    assert post("load_lora_adapter", "user", body).status_code == 403
    assert post("unload_lora_adapter", "user", {"lora_name": "alpha"}).status_code == 403
    assert post("load_lora_adapter", "admin", body | {"lora_name": "beta"}).status_code == 403
    assert post("unload_lora_adapter", "admin", {"lora_name": "beta"}).status_code == 404
    for path in ("beta", "./beta", "alpha/../beta"):
        assert post("load_lora_adapter", "admin", body | {"lora_path": path}).status_code == 404
    assert post("load_lora_adapter", "admin", body).status_code == 200
    assert post("unload_lora_adapter", "admin", {"lora_name": "alpha"}).status_code == 200
    assert post("completions", "user", {"model": "alpha", "prompt": "x"}).status_code == 404
    assert post("completions", "user", {"model": "beta", "prompt": "x"}).status_code == 200
