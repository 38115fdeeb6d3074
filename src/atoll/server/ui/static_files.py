"""The page's own files, in memory: their address changes with their content, so browsers may keep them for ever."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from importlib import resources

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from atoll.errors import NotFound

STATIC_PREFIX = "/ui/static/"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HEADERS = {"cache-control": "public, max-age=31536000, immutable", "x-content-type-options": "nosniff"}


class StaticFiles:
    """Every file of the folder `static`, read once. One digest stands for all, so that modules find each other."""

    def __init__(self) -> None:
        folder = resources.files("atoll.server.ui") / "static"
        self._files = {
            entry.name: entry.read_bytes()
            for entry in sorted(folder.iterdir(), key=lambda e: e.name)
            if entry.is_file()
        }
        digest = hashlib.sha256()
        for name, content in self._files.items():
            digest.update(name.encode() + b"\0" + content)
        self.digest = digest.hexdigest()[:16]
        self._packed = {name: gzip.compress(content, 9, mtime=0) for name, content in self._files.items()}
        self.router = APIRouter(include_in_schema=False)
        self.router.get(STATIC_PREFIX + "{digest}/{name}")(self.get)

    def url(self, name: str) -> str:
        """Where a browser finds a file. Raises KeyError for one that is not there."""
        self._files[name]
        return f"{STATIC_PREFIX}{self.digest}/{name}"

    @property
    def num_packed_bytes(self) -> int:
        """What a browser downloads for all of them together."""
        return sum(map(len, self._packed.values()))

    async def get(self, digest: str, name: str, request: Request) -> Response:
        """One file, packed for clients that can unpack it. Files of another version are not there."""
        content = self._files.get(name) if digest == self.digest else None
        if content is None:
            raise NotFound("there is no such file", mend="load the page again")
        suffix = "." + name.rpartition(".")[2]
        kind = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
        headers = _HEADERS | {"vary": "accept-encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(self._packed[name], media_type=kind, headers=headers | {"content-encoding": "gzip"})
        return Response(content, media_type=kind, headers=headers)
