"""Adapters from a hub: only what is allowed, only within limits, and each tenant's for itself."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from atoll.adapters import remote
from atoll.adapters.addresses import HostRules, SourceUnavailable, is_public
from atoll.adapters.cache import AdapterCache
from atoll.adapters.contract import CONTRACT_NAME
from atoll.adapters.hub import Hub
from atoll.adapters.peft_files import CONFIG_NAME, WEIGHTS_NAME
from atoll.adapters.peft_io import read_adapter
from atoll.adapters.remote import RemoteAdapters
from atoll.adapters.source import Budget
from atoll.adapters.store import adapter_digest
from atoll.errors import AdapterInvalid, AdapterNotFound, AtollError, RequestInvalid
from support.adapters import save_random_adapter
from support.hubs import TOKEN, FakeHub, fake_hub, reply, write_certificate
from support.tiny import make_model

LOOPBACK = HostRules(hosts=(), private_hosts=("127.0.0.1",), timeout_s=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_adapter(tmp_path_factory.mktemp("adapter") / "mood", make_model())


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        yield hub


def make_adapters(hub: FakeHub, root: Path, rules: HostRules = LOOPBACK, max_bytes: int = 1 << 30) -> RemoteAdapters:
    sources = {"hub": Hub(hub.url, rules)}
    return RemoteAdapters(sources, AdapterCache(root, 1 << 30), max_bytes=max_bytes, max_seconds=20)


def test_a_hub_s_adapter_is_downloaded_once_and_is_what_the_hub_has(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    repo = hub.add("org/mood", folder)
    repo.files |= {"adapter_model.bin": b"pickled", "run.py": b"print()", "training_args.bin": b"pickled"}
    adapters = make_adapters(hub, tmp_path)
    stored = adapters.resolve("hub", "org/mood", tenant="", token=None)
    assert stored.digest == adapter_digest(folder)
    assert stored.id == "hub:org/mood"
    read_adapter(stored.folder, verify=stored.verify)
    assert sorted(path.name for path in stored.folder.iterdir()) == sorted(
        ["README.md", CONFIG_NAME, WEIGHTS_NAME, "kept.json"]
    )
    assert set(hub.downloads()) == {"README.md", CONFIG_NAME, WEIGHTS_NAME}
    num_asked = len(hub.asked)
    assert adapters.resolve("hub", "org/mood", tenant="", token=None) == stored
    assert len(hub.asked) == num_asked
    assert make_adapters(hub, tmp_path).resolve("hub", "org/mood", tenant="", token=None) == stored
    assert len(hub.downloads()) == 4, "a new server asks who may see it, and finds the files (one is behind a redirect)"


def test_a_new_revision_is_another_adapter(
    hub: FakeHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.add("org/mood", folder)
    adapters = make_adapters(hub, tmp_path)
    before = adapters.resolve("hub", "org/mood", tenant="", token=None)
    config = json.loads(repo.files[CONFIG_NAME])
    repo.files[CONFIG_NAME] = json.dumps(config | {"lora_alpha": 99}).encode()
    assert adapters.resolve("hub", "org/mood", tenant="", token=None) == before, "not asked again so soon"
    monkeypatch.setattr(remote, "RECHECK_S", -1.0)
    after = adapters.resolve("hub", "org/mood", tenant="", token=None)
    assert after.digest != before.digest
    assert before.folder.is_dir(), "requests that run still load it"


def test_a_private_adapter_is_nobody_s_without_a_token_of_his_own(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    hub.add("org/secret", folder, private=True)
    adapters = make_adapters(hub, tmp_path)
    owned = adapters.resolve("hub", "org/secret", tenant="a", token=TOKEN)
    for tenant, token in (("b", None), ("b", "hf_wrong_token_here"), ("a", None), ("a", "hf_wrong_token_here")):
        with pytest.raises(AdapterNotFound, match="no such adapter for this caller"):
            adapters.resolve("hub", "org/secret", tenant=tenant, token=token)
    num_downloads = len(hub.downloads())
    other = adapters.resolve("hub", "org/secret", tenant="b", token=TOKEN)
    assert other.folder != owned.folder
    assert len(hub.downloads()) > num_downloads


def test_a_token_that_no_longer_opens_it_ends_the_use(
    hub: FakeHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/mood", folder)
    adapters = make_adapters(hub, tmp_path)
    stored = adapters.resolve("hub", "org/mood", tenant="", token=None)
    monkeypatch.setattr(remote, "RECHECK_S", -1.0)
    listing = "/api/models/org/mood/revision/main"
    hub.answers[listing] = lambda handler: reply(handler, 503, b"")
    assert adapters.resolve("hub", "org/mood", tenant="", token=None) == stored, "an outage of the hub is not ours"
    del hub.answers[listing]
    hub.repos["org/mood"].private = True
    for _ in range(2):
        with pytest.raises(AdapterNotFound):
            adapters.resolve("hub", "org/mood", tenant="", token=None)


def test_a_token_is_shown_to_the_hub_alone_and_is_never_told(
    hub: FakeHub, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    hub.add("org/secret", folder, private=True)
    with fake_hub() as mirror:
        mirror.repos, hub.redirect_weights_to = hub.repos, f"{mirror.url}/cdn"
        stored = make_adapters(hub, tmp_path).resolve("hub", "org/secret", tenant="a", token=TOKEN)
        assert [token for _, token in mirror.asked] == [None]
        assert {token for _, token in hub.asked} == {TOKEN}
    assert stored.digest == adapter_digest(folder)
    assert TOKEN not in caplog.text
    assert not any(TOKEN.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("adapter_id", "fault"),
    [
        ("", "is empty"),
        ("a" * 600, "more than 512"),
        ("org/mo\0od", "NUL"),
        ("org\\mood", "backslash"),
        ("/org/mood", "absolute"),
        ("org/../mood", "upwards"),
        ("..", "upwards"),
        ("org//mood", "empty part"),
        ("org/mood/more", "owner/name"),
        ("org/mood?x=1", "owner/name"),
        ("org/mood@", "owner/name"),
        ("org/mood@../../main", "upwards"),
        ("http://127.0.0.1/x", "empty part"),
        ("org/mood\r\nHost: evil", "owner/name"),
    ],
)
def test_ids_that_are_none_are_refused_by_name(hub: FakeHub, tmp_path: Path, adapter_id: str, fault: str) -> None:
    with pytest.raises(RequestInvalid, match=fault):
        make_adapters(hub, tmp_path).resolve("hub", adapter_id, tenant="", token=None)
    assert hub.asked == []


def test_a_token_that_is_none_and_a_source_that_is_not_allowed_are_refused(hub: FakeHub, tmp_path: Path) -> None:
    adapters = make_adapters(hub, tmp_path)
    with pytest.raises(RequestInvalid, match="api_token is not a token") as caught:
        adapters.resolve("hub", "org/mood", tenant="", token="two\r\nlines")
    assert "lines" not in str(caught.value)
    with pytest.raises(RequestInvalid, match="takes no adapters from 's3'"):
        adapters.resolve("s3", "bucket/mood", tenant="", token=None)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
    ],
)
def test_private_addresses_are_no_place_for_adapters(address: str) -> None:
    assert not is_public(address)


def test_public_addresses_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(map(is_public, ("8.8.8.8", "2606:4700::1111", "64:ff9b::808:808")))
    found = [(0, 0, 0, "", (address, 443)) for address in ("169.254.169.254", "8.8.8.8")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    assert HostRules(hosts=("*",)).addresses("example.com", 443) == ["8.8.8.8"]


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("https://evil.example/x", "not one that adapters may come from"),
        ("https://hub.example.evil.example/x", "not one that adapters may come from"),
        ("http://hub.example/x", "by https"),
        ("file:///etc/passwd", "not one that"),
        ("ftp://hub.example/x", "by https"),
        ("https://hub.example@evil.example/x", "not one that"),
        ("https://[::1/x", "not valid"),
        ("https://hub.example:99999/x", "not valid"),
    ],
)
def test_hosts_and_schemes_are_allow_listed(url: str, fault: str) -> None:
    with pytest.raises(RequestInvalid, match=fault):
        HostRules(hosts=("hub.example", "*.hub.example")).connection(url)


def test_a_certificate_is_held_against_the_name_and_the_connection_goes_to_the_checked_address(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = write_certificate(tmp_path, "hub.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    names = {"hub.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}
    asked = []

    def resolve(host: str, port: int, **kwargs: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (names[host].pop(), port))]

    with fake_hub(certificate) as hub:
        hub.add("org/mood", folder)
        port = hub.url.rpartition(":")[2]
        rules = HostRules(hosts=(), private_hosts=("hub.test", "other.test"), timeout_s=5)
        # http.client would resolve what it connects to once more, and get nothing here: each name is good for one look.
        monkeypatch.setattr("atoll.adapters.addresses.socket.getaddrinfo", resolving(resolve))
        listing = Hub(f"https://hub.test:{port}", rules).look("org/mood", None, Budget(1 << 20, 20))
        assert listing.files
        with pytest.raises(SourceUnavailable, match="does not answer"):
            Hub(f"https://other.test:{port}", rules).look("org/mood", None, Budget(1 << 20, 20))
    assert asked == ["hub.test", "other.test"]


def resolving(resolve: Any) -> Any:
    """getaddrinfo with invented names beside the real addresses."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
        return resolve(host, port) if host.endswith(".test") else real(host, port, *args, **kwargs)

    return getaddrinfo


def test_a_name_with_a_private_address_is_refused_when_it_is_asked(hub: FakeHub, tmp_path: Path) -> None:
    """`localhost` is allow-listed here like a name that an attacker owns, and leads to this machine."""
    port = hub.url.rpartition(":")[2]
    rules = HostRules(hosts=("localhost",), timeout_s=5)
    adapters = RemoteAdapters(
        {"hub": Hub(f"https://localhost:{port}", rules)}, AdapterCache(tmp_path, 1 << 30), max_bytes=1, max_seconds=5
    )
    with pytest.raises(RequestInvalid, match="private address"):
        adapters.resolve("hub", "org/mood", tenant="", token=None)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("http://169.254.169.254/latest/meta-data", "not one that"),
        ("https://localhost/x", "not one that"),
        ("file:///etc/passwd", "not one that"),
        ("/api/models/org/mood/revision/main", "redirects more than"),
        ("https://[", "does not answer|not valid"),
        ("/" + "a" * 9000, "an address that is none"),
        ("/\xe4", "an address that is none"),
    ],
)
def test_redirects_lead_nowhere_that_is_not_allowed(
    hub: FakeHub, folder: Path, tmp_path: Path, target: str, fault: str
) -> None:
    hub.add("org/mood", folder)
    hub.answers["/api/models/org/mood/revision/main"] = lambda handler: reply(handler, 302, b"", {"Location": target})
    with pytest.raises(AtollError, match=fault):
        make_adapters(hub, tmp_path).resolve("hub", "org/mood", tenant="", token=None)


def test_what_is_too_large_is_not_taken(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    repo = hub.add("org/mood", folder)
    with pytest.raises(AdapterInvalid, match="larger than the 3000 bytes"):
        make_adapters(hub, tmp_path, max_bytes=3000).resolve("hub", "org/mood", tenant="", token=None)
    repo.files[CONFIG_NAME] = b" " * (1 << 20) + repo.files[CONFIG_NAME]
    with pytest.raises(AdapterInvalid, match=f"{CONFIG_NAME} is larger than"):
        make_adapters(hub, tmp_path).resolve("hub", "org/mood", tenant="", token=None)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def changed(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_file_that_is_not_what_the_hub_announced_is_refused(
    hub: FakeHub, folder: Path, tmp_path: Path, name: str
) -> None:
    repo = hub.add("org/mood", folder)
    place = "cdn/org/mood" if name == WEIGHTS_NAME else "org/mood"
    path = f"/{place}/resolve/{repo.commit}/{name}"
    etag = "0" * 40
    hub.answers[path] = lambda handler: reply(handler, 200, changed(repo.files[name]), {"ETag": etag})
    with pytest.raises(AdapterInvalid, match=f"{name} is not what the hub says it is"):
        make_adapters(hub, tmp_path).resolve("hub", "org/mood", tenant="", token=None)


def cut(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b"{")


@pytest.mark.parametrize(
    "answer",
    [
        lambda handler: reply(handler, 500, b""),
        lambda handler: reply(handler, 200, b"not json"),
        lambda handler: reply(handler, 200, b'{"sha": "main", "siblings": []}'),
        lambda handler: reply(handler, 200, b'{"sha": 1}'),
        lambda handler: reply(handler, 200, b"[" * 100_000),
        lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"),
        cut,
    ],
)
def test_a_hub_that_misbehaves_is_unavailable(hub: FakeHub, tmp_path: Path, answer: Any) -> None:
    hub.answers["/api/models/org/mood/revision/main"] = answer
    with pytest.raises(SourceUnavailable):
        make_adapters(hub, tmp_path).resolve("hub", "org/mood", tenant="", token=None)


def test_what_is_no_adapter_is_told(hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    repo = hub.add("org/mood", folder)
    repo.files["adapter_model.bin"] = repo.files.pop(WEIGHTS_NAME)
    with pytest.raises(AdapterInvalid, match="could run code"):
        make_adapters(hub, tmp_path).resolve("hub", "org/mood", tenant="", token=None)
    hub.add("org/base", folder).files = {"config.json": b"{}"}
    with pytest.raises(AdapterInvalid, match=f"no {CONFIG_NAME}"):
        make_adapters(hub, tmp_path).resolve("hub", "org/base", tenant="", token=None)
    bad = hub.add("org/contract", folder)
    bad.files[CONTRACT_NAME] = b"{}"
    with pytest.raises(AdapterInvalid, match="not a valid contract"):
        make_adapters(hub, tmp_path).resolve("hub", "org/contract", tenant="", token=None)
