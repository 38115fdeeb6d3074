"""A hub on this machine: the part of Hugging Face's HTTP interface that adapters come by, and ways to misbehave."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from support.listening import listening

TOKEN = "hf_0123456789abcdef"


@dataclass
class Repo:
    """One repository. files: by name; private: whether TOKEN is needed to see it."""

    files: dict[str, bytes]
    private: bool = False

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


@dataclass
class FakeHub:
    """asked: each request's path and token. answers: paths that are answered by a function instead."""

    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    redirect_weights_to: str = ""
    url: str = ""

    def add(self, name: str, folder: Path, *, private: bool = False) -> Repo:
        """Publish a PEFT folder."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.repos[name] = Repo(files, private)
        return self.repos[name]

    def downloads(self) -> list[str]:
        """The files that were asked for, by name."""
        return [path.rpartition("/")[2] for path, _ in self.asked if "/resolve/" in path]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        token = (handler.headers["Authorization"] or "").removeprefix("Bearer ") or None
        self.asked.append((path, token))
        if path in self.answers:
            self.answers[path](handler)
        elif path.startswith("/api/models/"):
            name, _, _ = path.removeprefix("/api/models/").partition("/revision/")
            self._list(handler, name, token)
        else:
            name, _, rest = path.lstrip("/").removeprefix("cdn/").partition("/resolve/")
            self._file(handler, name, rest.partition("/")[2], token, is_mirror=path.startswith("/cdn/"))

    def _repo(self, name: str, token: str | None) -> Repo | None:
        repo = self.repos.get(name)
        return None if repo is None or (repo.private and token != TOKEN) else repo

    def _list(self, handler: BaseHTTPRequestHandler, name: str, token: str | None) -> None:
        repo = self._repo(name, token)
        if repo is None:
            reply(handler, 401, b"{}")
            return
        siblings = [{"rfilename": file} for file in repo.files]
        reply(handler, 200, json.dumps({"id": name, "sha": repo.commit, "siblings": siblings}).encode())

    def _file(
        self, handler: BaseHTTPRequestHandler, name: str, file: str, token: str | None, *, is_mirror: bool
    ) -> None:
        # A mirror is asked with a signed address and no token.
        repo = self.repos.get(name) if is_mirror else self._repo(name, token)
        if repo is None or file not in repo.files:
            reply(handler, 404, b"")
            return
        data = repo.files[file]
        if file.endswith(".safetensors") and not is_mirror:
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            target = (self.redirect_weights_to or f"{self.url}/cdn") + handler.path
            reply(handler, 302, b"", {"Location": target, "X-Linked-Etag": etag})
            return
        etag = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        reply(handler, 200, data, {"ETag": f'"{etag}"'})


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    """Send a whole answer."""
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def write_certificate(folder: Path, host: str) -> Path:
    """A key and a certificate for a host, signed by itself, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = folder / f"{host}.pem"
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + certificate.public_bytes(pem))
    return path


@contextmanager
def fake_hub(certificate: Path | None = None) -> Iterator[FakeHub]:
    """Run a hub in a thread; with a certificate it speaks TLS."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with listening(Handler, certificate) as hub.url:
        yield hub
