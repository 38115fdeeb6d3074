"""Adapters from S3 and what speaks like it, through fsspec's s3fs, with the operator's own credentials.

Only buckets that the operator names can be reached, so the credentials open nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from atoll.adapters.addresses import HostRules, SourceUnavailable
from atoll.adapters.source import FILES, Budget, Listing, wanted_files
from atoll.errors import AdapterInvalid, AdapterNotFound, AtollError, RequestInvalid, UsageError

if TYPE_CHECKING:
    from aiohttp.abc import ResolveResult

BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
KEY = re.compile(r"[A-Za-z0-9._=+@-]{1,128}(?:/[A-Za-z0-9._=+@-]{1,128}){0,15}")
_BLOCK_BYTES = 4 << 20
# boto's own retries and region redirects take a few requests; more than that is an outage.
_MAX_ATTEMPTS = 2


class S3:
    """Buckets of one S3 service. buckets: `bucket` or `bucket/prefix`, each of which may be read below.

    endpoint None: what AWS_ENDPOINT_URL says, else Amazon's. Credentials come from the environment as for every AWS
    tool. Raises UsageError where s3fs is not installed or there is no bucket.
    """

    def __init__(self, buckets: Sequence[str], rules: HostRules, *, endpoint: str | None = None) -> None:
        if not buckets:
            raise UsageError("adapters may come from s3, but no bucket is allowed", mend="name one: --adapter-bucket B")
        self._roots = [root.removeprefix("s3://").strip("/") + "/" for root in buckets]
        self._files = file_system(rules, endpoint)

    def look(self, adapter_id: str, token: str | None, budget: Budget) -> Listing:
        """What there is under `bucket/folder`. Raises AdapterNotFound also outside of the allowed buckets."""
        if token is not None:
            raise RequestInvalid("api_token has no meaning for s3", where="api_token", mend="leave it out")
        path = adapter_id.removeprefix("s3://").rstrip("/")
        bucket, _, key = path.partition("/")
        if not (BUCKET.fullmatch(bucket) and KEY.fullmatch(key)):
            raise RequestInvalid(f"{adapter_id[:80]!r} is not the id of an adapter in s3", mend="write bucket/folder")
        if not any(f"{path}/".startswith(root) for root in self._roots):
            raise AdapterNotFound(f"no adapter {path[:80]!r} in the buckets that adapters may come from")
        found = self._tags(path, budget)
        if not found:
            raise AdapterNotFound(f"no adapter {path[:80]!r} in s3")
        revision = hashlib.sha256(json.dumps(found).encode()).hexdigest()
        return Listing(path, revision, wanted_files(dict(found), path))

    def fetch(self, listing: Listing, folder: Path, token: str | None, budget: Budget) -> None:
        """Read the files part by part; a file that changes meanwhile is refused."""
        for name in listing.files:
            with (
                explained(),
                self._files.open(
                    f"{listing.name}/{name}", "rb", block_size=_BLOCK_BYTES, cache_type="readahead"
                ) as file,
            ):
                budget.save(file.read, folder / name)
        if hashlib.sha256(json.dumps(self._tags(listing.name, budget)).encode()).hexdigest() != listing.revision:
            raise AdapterInvalid("the adapter changed while it was read", mend="send the request again")

    def _tags(self, path: str, budget: Budget) -> list[tuple[str, str]]:
        """The name and the entity tag of each of FILES that is there."""
        found = []
        for name in (*FILES, "adapter_model.bin"):
            budget.check_time()
            try:
                with explained():
                    found.append((name, str(self._files.info(f"{path}/{name}", refresh=True)["ETag"])))
            except AdapterNotFound:
                continue
        return found


def file_system(rules: HostRules, endpoint: str | None) -> Any:
    """s3fs, which connects to none but the addresses that the rules allow. Raises UsageError where it is missing."""
    try:
        import fsspec  # type: ignore[import-untyped]
        from aiohttp.abc import AbstractResolver

        fsspec.get_filesystem_class("s3")
    except ImportError as error:
        raise UsageError("adapters from s3 need s3fs", why=str(error), mend="pip install 'atoll[s3]'") from None

    class Resolver(AbstractResolver):
        """Gives aiohttp none but the addresses that the rules allow."""

        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            addresses = await asyncio.to_thread(rules.addresses, host, port)
            return [_resolved(host, port, address) for address in addresses]

        async def close(self) -> None:
            """There is nothing to give back."""

    addressing = {}
    if endpoint is not None:
        # A literal address is never resolved, so it is held against the rules here.
        rules.addresses(urlsplit(endpoint).hostname or "", 443)
        addressing = {"s3": {"addressing_style": "path"}}
    return fsspec.filesystem(
        "s3",
        endpoint_url=endpoint,
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": rules.timeout_s,
            "read_timeout": rules.timeout_s,
            "retries": {"total_max_attempts": _MAX_ATTEMPTS},
            "connector_args": {"resolver": Resolver()},
            **addressing,
        },
    )


def _resolved(host: str, port: int, address: str) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return {"hostname": host, "host": address, "port": port, "family": family, "proto": 0, "flags": flags}


@contextmanager
def explained() -> Iterator[None]:
    """Turn what s3fs raises into errors of our own, without what they say about credentials."""
    try:
        yield
    except AtollError:
        raise
    except (FileNotFoundError, PermissionError):
        # Without the right to list a bucket, S3 answers 403 for what is not there.
        raise AdapterNotFound("no such adapter in s3") from None
    except Exception as error:
        raise SourceUnavailable("s3 does not answer as it should", why=type(error).__name__, mend="try again") from None
