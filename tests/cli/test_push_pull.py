"""`atoll push` and `atoll pull`, against a hub on this machine and against moto's S3: what comes back is what went."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from atoll.adapters.peft_files import CONFIG_NAME, adapter_digest
from atoll.adapters.store import AdapterStore
from support.adapters import save_random_adapter
from support.buckets import SETTINGS, moto_endpoint
from support.hub_uploads import UploadHub, upload_hub
from support.hubs import TOKEN, Repo
from support.tiny import make_model

MAIN = [sys.executable, "-c", "from atoll.cli.main import main; main()"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_adapter(tmp_path_factory.mktemp("adapter") / "mood", make_model())


@pytest.fixture
def store(tmp_path: Path, folder: Path) -> AdapterStore:
    store = AdapterStore(tmp_path / "store")
    store.publish("mood", folder)
    return store


@pytest.fixture
def hub() -> Iterator[UploadHub]:
    with upload_hub() as hub:
        yield hub


@pytest.fixture
def bucket() -> Iterator[dict[str, str]]:
    """The settings that lead to a bucket named `models`."""
    with moto_endpoint() as endpoint:
        files = fsspec.filesystem(
            "s3", endpoint_url=endpoint, key="key", secret="secret", skip_instance_cache=True, use_listings_cache=False
        )
        files.mkdir("models")
        yield SETTINGS | {"AWS_ENDPOINT_URL": endpoint}


def atoll(store: AdapterStore, *arguments: str, code: int = 0, **settings: str) -> str:
    """Run the command in a process of its own; huggingface_hub and boto read their settings once."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HF_"))}
    environment = clean | {"ATOLL_STORE": str(store.root), "HF_HUB_DISABLE_XET": "1"} | settings
    done = subprocess.run([*MAIN, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == code, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done.stderr if code else done.stdout


def test_what_was_pushed_to_a_hub_comes_back_the_same_and_is_private(
    store: AdapterStore, hub: UploadHub, folder: Path
) -> None:
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    pushed = json.loads(atoll(store, "push", "mood", "hf://team/mood", "--json", **settings))
    assert pushed["adapter"] == "mood@1"
    assert hub.repos["team/mood"].private
    assert CONFIG_NAME in hub.repos["team/mood"].files
    assert hub.messages == [f"mood@1 ({adapter_digest(folder)[:12]})"]
    pulled = json.loads(atoll(store, "pull", "hf://team/mood", "--name", "back", "--json", **settings))
    assert pulled["digest"] == adapter_digest(folder) == pushed["digest"]
    assert store.resolve("back").digest == adapter_digest(folder)
    without = {"HF_ENDPOINT": hub.url}
    assert "no such adapter" in atoll(store, "pull", "hf://team/mood", code=4, **without)
    assert "wants a token" in atoll(store, "push", "mood", "hf://team/mood", code=2, **without)


def test_an_open_repository_must_be_meant(store: AdapterStore, hub: UploadHub) -> None:
    hub.repos["team/open"] = Repo({})
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    assert "read by everybody" in atoll(store, "push", "mood", "hf://team/open", code=2, **settings)
    assert hub.repos["team/open"].files == {}
    atoll(store, "push", "mood", "hf://team/open", "--public", **settings)
    assert CONFIG_NAME in hub.repos["team/open"].files


def test_a_token_that_may_not_write_is_told(store: AdapterStore, hub: UploadHub) -> None:
    told = atoll(store, "push", "mood", "hf://team/mood", code=4, HF_ENDPOINT=hub.url, HF_TOKEN="hf_other")
    assert "not open to this token" in told
    assert hub.repos == {}


def test_what_was_pushed_to_a_bucket_comes_back_the_same(
    store: AdapterStore, bucket: dict[str, str], folder: Path
) -> None:
    atoll(store, "push", "mood", "s3://models/team/mood", **bucket)
    atoll(store, "pull", "s3://models/team/mood", "--name", "back", **bucket)
    assert store.resolve("back").digest == adapter_digest(folder)
    assert "make the bucket" in atoll(store, "push", "mood", "s3://nowhere/mood", code=4, **bucket)
    assert "no adapter" in atoll(store, "pull", "s3://models/team/other", code=4, **bucket)
