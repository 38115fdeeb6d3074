"""Adapters from elsewhere: who may have which is asked of the source, and what has come is kept for its tenant.

An adapter that one tenant fetched is never given to another: each has entries of its own in the cache, and each
caller's token is shown to the source before its first use and again every few minutes.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from threading import BoundedSemaphore, Lock

from atoll.adapters.addresses import SourceUnavailable
from atoll.adapters.cache import AdapterCache
from atoll.adapters.contract import read_contract
from atoll.adapters.source import Budget, Listing, Source
from atoll.adapters.store import StoredAdapter
from atoll.errors import AdapterNotFound, Overloaded, RequestInvalid

MAX_ID_CHARS = 512
RECHECK_S = 300.0
MAX_DOWNLOADS = 4
WAIT_S = 30.0
_MAX_CHECKED = 4096
_TOKEN = re.compile(r"[\x21-\x7e]{1,512}")

_Key = tuple[str, str, str, str]


class RemoteAdapters:
    """Adapters of several sources, by the source's name; any thread may use it.

    max_bytes, max_seconds: of one adapter's download.
    """

    def __init__(
        self, sources: Mapping[str, Source], cache: AdapterCache, *, max_bytes: int, max_seconds: float
    ) -> None:
        self._sources = dict(sources)
        self._cache = cache
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._checked: OrderedDict[_Key, tuple[Listing, float]] = OrderedDict()
        self._lock = Lock()
        self._downloads = BoundedSemaphore(MAX_DOWNLOADS)

    def resolve(self, source: str, adapter_id: str, *, tenant: str, token: str | None) -> StoredAdapter:
        """The adapter on this machine's disk, downloaded first where it is not there yet.

        Raises RequestInvalid for what cannot be an id, AdapterNotFound also where the token does not open it,
        AdapterInvalid, SourceUnavailable and Overloaded.
        """
        check_remote_id(adapter_id)
        if token is not None and _TOKEN.fullmatch(token) is None:
            raise RequestInvalid("api_token is not a token", where="api_token")
        place = self._sources.get(source)
        if place is None:
            raise RequestInvalid(
                f"this server takes no adapters from {source!r}",
                where="adapter_source",
                mend=f"whoever runs it can allow that: atoll serve --adapter-source {source}",
            )
        budget = Budget(self._max_bytes, self._max_seconds)
        listing = self._look(place, (source, adapter_id, tenant, _fingerprint(token)), token, budget)
        key = _fingerprint(json.dumps([tenant, source, listing.name, listing.revision]))
        kept = self._cache.find(key)
        if kept is None:
            if not self._downloads.acquire(timeout=WAIT_S):
                raise Overloaded("other adapters are being downloaded", mend="try again in a minute")
            try:
                budget = Budget(self._max_bytes, self._max_seconds)
                kept = self._cache.find(key) or self._cache.add(
                    key, lambda folder: place.fetch(listing, folder, token, budget)
                )
            finally:
                self._downloads.release()
        return StoredAdapter(f"{source}:{adapter_id}", 0, kept.digest, kept.folder, read_contract(kept.folder))

    def _look(self, place: Source, key: _Key, token: str | None, budget: Budget) -> Listing:
        """What the source has for this caller. While it does not answer, what it said before still holds."""
        with self._lock:
            listing, checked_at_s = self._checked.get(key, (None, 0.0))
        if listing is not None and time.monotonic() - checked_at_s < RECHECK_S:
            return listing
        try:
            listing = place.look(key[1], token, budget)
        except SourceUnavailable:
            if listing is None:
                raise
        except AdapterNotFound:
            with self._lock:
                self._checked.pop(key, None)
            raise
        with self._lock:
            self._checked[key] = listing, time.monotonic()
            self._checked.move_to_end(key)
            if len(self._checked) > _MAX_CHECKED:
                self._checked.popitem(last=False)
        return listing


def check_remote_id(adapter_id: str) -> None:
    """Raise RequestInvalid, saying why, for an id that could be a way out of a folder."""
    parts = adapter_id.removeprefix("s3://").partition("@")[0].split("/")
    faults = {
        "is empty": not adapter_id,
        f"has more than {MAX_ID_CHARS} characters": len(adapter_id) > MAX_ID_CHARS,
        "holds a NUL": "\0" in adapter_id,
        "holds a backslash": "\\" in adapter_id,
        "is an absolute path": adapter_id.startswith("/"),
        "leads upwards with `..`": ".." in adapter_id,
        "has an empty part": "" in parts[:-1] or "." in parts,
    }
    for fault, is_there in faults.items():
        if is_there:
            raise RequestInvalid(f"the adapter id {adapter_id[:80]!r} {fault}", where="adapter_id")


def _fingerprint(text: str | None) -> str:
    """What stands for a token or a key in memory and on disk; the token itself is not kept."""
    return "" if text is None else hashlib.sha256(text.encode()).hexdigest()
