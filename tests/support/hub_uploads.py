"""The other half of a hub on this machine: what huggingface_hub says to make a repository and to commit files."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from support.hubs import TOKEN, FakeHub, Repo, reply
from support.listening import listening


class UploadHub(FakeHub):
    """A hub that takes uploads with TOKEN: small files in the commit, weights by git's protocol for large files."""

    def __init__(self) -> None:
        super().__init__()
        self.large: dict[str, bytes] = {}
        self.messages: list[str] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        name = path.removeprefix("/api/models/")
        if handler.command == "GET" and name in self.repos:
            self._info(handler, name)
        elif handler.command == "GET":
            super().answer(handler)
        else:
            body = handler.rfile.read(int(handler.headers["Content-Length"] or 0))
            self._take(handler, path, body)

    def _info(self, handler: BaseHTTPRequestHandler, name: str) -> None:
        repo = self.repos[name]
        fields = {"id": name, "sha": repo.commit, "private": repo.private, "siblings": [], "tags": []}
        reply(handler, 200, json.dumps(fields).encode(), {"Content-Type": "application/json"})

    def _take(self, handler: BaseHTTPRequestHandler, path: str, body: bytes) -> None:
        if path.startswith("/large/"):
            self.large[path.removeprefix("/large/")] = body
            reply(handler, 200, b"")
            return
        if handler.headers["Authorization"] != f"Bearer {TOKEN}":
            reply(handler, 401, b"{}")
            return
        if path.endswith("/commit/main"):
            fields: Any = self._commit(path, body)
        else:
            fields = self._prepare(path, json.loads(body))
        reply(handler, 200, json.dumps(fields).encode(), {"Content-Type": "application/json"})

    def _prepare(self, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        if path == "/api/repos/create":
            name = f"{asked['organization']}/{asked['name']}"
            self.repos.setdefault(name, Repo({}, private=asked.get("visibility") == "private" or asked.get("private")))
            return {"url": f"{self.url}/{name}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.endswith("/preupload/main"):
            modes = [
                (file["path"], "lfs" if file["path"].endswith("safetensors") else "regular") for file in asked["files"]
            ]
            return {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes]}
        objects = [
            {**entry, "actions": {"upload": {"href": f"{self.url}/large/{entry['oid']}"}}} for entry in asked["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _commit(self, path: str, body: bytes) -> dict[str, Any]:
        name = path.removeprefix("/api/models/").removesuffix("/commit/main")
        repo = self.repos[name]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.messages.append(value["summary"])
            elif entry["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            else:
                repo.files[value["path"]] = self.large[value["oid"]]
        return {"success": True, "commitOid": repo.commit, "commitUrl": f"{self.url}/{name}/commit/{repo.commit}"}


@contextmanager
def upload_hub() -> Iterator[UploadHub]:
    """Run a hub that takes uploads in a thread."""
    hub = UploadHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.answer(self)

        do_POST = do_PUT = do_GET  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with listening(Handler) as hub.url:
        yield hub
