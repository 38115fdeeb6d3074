"""Adapters from S3, on moto's server: only from allowed buckets, and each content under its own digest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from atoll.adapters import remote
from atoll.adapters.addresses import HostRules
from atoll.adapters.cache import AdapterCache
from atoll.adapters.peft_files import CONFIG_NAME
from atoll.adapters.remote import RemoteAdapters
from atoll.adapters.s3 import S3
from atoll.adapters.store import adapter_digest
from atoll.errors import AdapterNotFound, AtollError, RequestInvalid, UsageError
from support.adapters import save_random_adapter
from support.buckets import SETTINGS, moto_endpoint
from support.hubs import TOKEN
from support.tiny import make_model

LOOPBACK = HostRules(hosts=(), private_hosts=("127.0.0.1",), timeout_s=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_adapter(tmp_path_factory.mktemp("adapter") / "mood", make_model())


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Any]:
    """moto's server, with an adapter in each of two buckets."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    with moto_endpoint() as endpoint:
        files = fsspec.filesystem("s3", endpoint_url=endpoint, skip_instance_cache=True, use_listings_cache=False)
        for bucket in ("models", "others"):
            files.mkdir(bucket)
            files.put(str(folder), f"{bucket}/team/mood", recursive=True)
        files.endpoint = endpoint
        yield files


def s3_adapters(files: Any, root: Path, *buckets: str) -> RemoteAdapters:
    source = S3(buckets, LOOPBACK, endpoint=files.endpoint)
    return RemoteAdapters({"s3": source}, AdapterCache(root, 1 << 30), max_bytes=1 << 30, max_seconds=20)


def test_an_adapter_in_s3_is_fetched_and_a_changed_one_again(
    s3: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = s3_adapters(s3, tmp_path, "models")
    stored = adapters.resolve("s3", "models/team/mood", tenant="", token=None)
    assert stored.digest == adapter_digest(folder)
    assert adapters.resolve("s3", "s3://models/team/mood", tenant="", token=None).digest == stored.digest
    config = json.loads((folder / CONFIG_NAME).read_text())
    s3.pipe(f"models/team/mood/{CONFIG_NAME}", json.dumps(config | {"lora_alpha": 99}).encode())
    monkeypatch.setattr(remote, "RECHECK_S", -1.0)
    assert adapters.resolve("s3", "models/team/mood", tenant="", token=None).digest != stored.digest


def test_only_allowed_buckets_and_prefixes_can_be_read(s3: Any, tmp_path: Path) -> None:
    adapters = s3_adapters(s3, tmp_path, "s3://models/team/", "others/tea")
    adapters.resolve("s3", "models/team/mood", tenant="", token=None)
    for path in ("others/team/mood", "models/teammate/mood", "models/other", "models/team/missing", "absent/x"):
        with pytest.raises(AdapterNotFound):
            adapters.resolve("s3", path, tenant="", token=None)
    for path in ("models", "models/team/../../others", "Models/x", "models/te am", "models/x?versionId=1", "a/*"):
        with pytest.raises(RequestInvalid):
            adapters.resolve("s3", path, tenant="", token=None)
    with pytest.raises(RequestInvalid, match="no meaning for s3"):
        adapters.resolve("s3", "models/team/mood", tenant="", token=TOKEN)
    with pytest.raises(UsageError, match="no bucket is allowed"):
        S3((), LOOPBACK)


def test_s3_at_a_private_address_must_be_allowed_by_name(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RequestInvalid, match="private address"):
        S3(["models"], HostRules(hosts=()), endpoint=s3.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint.replace("127.0.0.1", "localhost"))
    source = S3(["models"], HostRules(hosts=("localhost",), timeout_s=5))
    adapters = RemoteAdapters({"s3": source}, AdapterCache(tmp_path, 1 << 30), max_bytes=1 << 30, max_seconds=20)
    caplog.clear()
    with pytest.raises(AtollError, match=r"private address|does not answer"):
        adapters.resolve("s3", "models/team/mood", tenant="", token=None)
    assert not [record for record in caplog.records if record.name == "werkzeug"], "nobody asked it"
