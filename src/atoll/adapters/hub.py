"""Adapters from a Hugging Face hub, by its HTTP interface.

Not by huggingface_hub: that follows every redirect, to whatever address a name has, and knows no limit in bytes.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from atoll.adapters.addresses import HostRules, SourceUnavailable
from atoll.adapters.source import Budget, Listing, wanted_files
from atoll.errors import AdapterInvalid, AdapterNotFound, Overloaded, RequestInvalid

MAX_REDIRECTS = 5
MAX_LISTING_BYTES = 8 << 20
_MAX_URL_CHARS = 8192
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_ID = re.compile(rf"({_PART}(?:/{_PART})?)(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,127}}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class _Answer(NamedTuple):
    """A response, and the headers of all that led to it."""

    response: http.client.HTTPResponse
    headers: dict[str, str]


class Hub:
    """One hub. endpoint: its address, which the rules must allow."""

    def __init__(self, endpoint: str, rules: HostRules) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._rules = rules

    def look(self, adapter_id: str, token: str | None, budget: Budget) -> Listing:
        """What there is under `owner/name[@revision]`, as far as the token's owner may see it.

        Raises AdapterNotFound, RequestInvalid for an id that is none, SourceUnavailable.
        """
        found = _ID.fullmatch(adapter_id)
        if found is None:
            raise RequestInvalid(f"{adapter_id[:80]!r} is not the id of a hub's adapter", mend="write owner/name")
        name, revision = found[1], found[2] or "main"
        url = f"{self._endpoint}/api/models/{quote(name)}/revision/{quote(revision, safe='')}"
        with self._open(url, token, budget) as answer:
            body = budget.read(answer.response.read1, MAX_LISTING_BYTES)
        commit, names = _parse_listing(body)
        return Listing(name, commit, wanted_files(names, adapter_id))

    def fetch(self, listing: Listing, folder: Path, token: str | None, budget: Budget) -> None:
        """Write the files of a listing into a folder and hold them against the hub's own digests."""
        for name in listing.files:
            url = f"{self._endpoint}/{quote(listing.name)}/resolve/{listing.revision}/{quote(name)}"
            with self._open(url, token, budget) as answer:
                budget.save(answer.response.read1, folder / name)
                length = answer.response.getheader("Content-Length")
            if length is not None and length != str((folder / name).stat().st_size):
                raise SourceUnavailable(f"{name} did not come to its end", mend="send the request again")
            _check_digest(folder / name, answer.headers)

    @contextmanager
    def _open(self, url: str, token: str | None, budget: Budget) -> Iterator[_Answer]:
        """GET, through redirects as far as the rules allow; the token goes to the hub itself alone."""
        headers: dict[str, str] = {}
        origin = urlsplit(url)[:2]
        for _ in range(MAX_REDIRECTS + 1):
            budget.check_time()
            connection = self._rules.connection(url)
            try:
                response = _sent(connection, url, token if urlsplit(url)[:2] == origin else None)
                # The hub's own word about a file comes with its redirect, and counts more than that of a mirror.
                headers = {name.lower(): value for name, value in response.getheaders()} | headers
                if response.status not in _REDIRECTS:
                    _check_status(response)
                    yield _Answer(response, headers)
                    return
                url = urljoin(url, response.getheader("Location", ""))
                if len(url) > _MAX_URL_CHARS or not url.isascii():
                    raise SourceUnavailable("the hub redirects to an address that is none")
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise SourceUnavailable("the hub does not answer", why=type(error).__name__) from None
            finally:
                connection.close()
        raise SourceUnavailable(f"the hub redirects more than {MAX_REDIRECTS} times")


def _sent(connection: http.client.HTTPConnection, url: str, token: str | None) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    # http.client checks that neither the path nor a header can smuggle in another line.
    headers = {"Accept-Encoding": "identity", "User-Agent": "atoll"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), headers=headers)
    return connection.getresponse()


def _check_status(response: http.client.HTTPResponse) -> None:
    if response.status == 200:
        return
    if response.status in (401, 403, 404):
        raise AdapterNotFound(
            "the hub has no such adapter for this caller",
            mend="check the spelling; for a private or gated adapter send its token as api_token",
        )
    if response.status == 429:
        raise Overloaded("the hub has had too many requests", mend="try again in a minute")
    raise SourceUnavailable(f"the hub answers {response.status}", mend="try again")


def _parse_listing(body: bytes) -> tuple[str, list[str]]:
    try:
        fields: Any = json.loads(body)
        commit, names = fields["sha"], [entry["rfilename"] for entry in fields["siblings"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SourceUnavailable("the hub's answer is not a listing") from None
    if not isinstance(commit, str) or _COMMIT.fullmatch(commit) is None:
        raise SourceUnavailable("the hub's answer names no commit")
    return commit, names


def _check_digest(path: Path, headers: Mapping[str, str]) -> None:
    """Hold a file against its ETag: sha256 for large files, git's own digest of a blob for small ones."""
    etag = headers.get("x-linked-etag", headers.get("etag", "")).removeprefix("W/").strip('"')
    if _SHA256.fullmatch(etag):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    elif _COMMIT.fullmatch(etag) and path.name.endswith((".json", ".md")):
        data = path.read_bytes()
        digest = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    else:
        return
    if digest != etag:
        raise AdapterInvalid(f"{path.name} is not what the hub says it is", mend="send the request again")
