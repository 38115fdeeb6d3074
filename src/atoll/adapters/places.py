"""Places outside of this machine that adapters are pushed to and pulled from: `hf://org/name`, `s3://bucket/prefix`.

Whoever calls is the machine's owner, so the hub and the service that the environment names may be asked wherever they
are; redirects lead to Hugging Face's own hosts at most.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from atoll.adapters.addresses import HostRules, SourceUnavailable
from atoll.adapters.contract import CONTRACT_NAME
from atoll.adapters.hub import Hub
from atoll.adapters.peft_files import CONFIG_NAME, WEIGHTS_NAME
from atoll.adapters.source import Budget, Listing, Source
from atoll.adapters.store import CARD_NAME
from atoll.errors import AdapterNotFound, AtollError, UsageError

HUB_HOSTS = ("huggingface.co", "*.huggingface.co", "*.hf.co")
DEFAULT_HUB = "https://huggingface.co"
MAX_BYTES = 4 << 30
MAX_SECONDS = 1800.0
# The config comes last: without it nobody takes the folder for an adapter.
_UPLOAD_ORDER = (WEIGHTS_NAME, CONTRACT_NAME, CARD_NAME, CONFIG_NAME)
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True)
class Place:
    """An address: `scheme` is hf or s3, `path` what follows it."""

    scheme: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"


def parse_place(address: str) -> Place:
    """Raises UsageError for what is no address of an adapter."""
    scheme, separator, path = address.partition("://")
    if not separator or scheme not in ("hf", "s3") or not path.strip("/"):
        raise UsageError(
            f"{address[:80]!r} is no address of an adapter", mend="write hf://org/name or s3://bucket/folder"
        )
    return Place(scheme, path.rstrip("/"))


def fetch(place: Place, folder: Path) -> Listing:
    """Download an adapter's files into an empty folder. Raises as `Source.fetch` does."""
    source, token = _source(place)
    budget = Budget(MAX_BYTES, MAX_SECONDS)
    listing = source.look(place.path, token, budget)
    source.fetch(listing, folder, token, budget)
    return listing


def push(place: Place, folder: Path, *, public: bool, message: str) -> str:
    """Upload the adapter's files in a folder; returns where they are now.

    public: a hub's repository that is made is open to everybody; without it one that is open already is refused.
    Raises UsageError, AdapterNotFound for a place that is not there or not this token's, SourceUnavailable.
    """
    if place.scheme == "hf":
        return _push_to_hub(place, folder, public=public, message=message)
    if public:
        raise UsageError("--public is for a hub", mend="leave it out; a bucket's policy says who may read it")
    return _push_to_s3(place, folder)


def hub_endpoint() -> str:
    """$HF_ENDPOINT, else Hugging Face's."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_HUB).rstrip("/")


def _source(place: Place) -> tuple[Source, str | None]:
    if place.scheme == "hf":
        return Hub(hub_endpoint(), _rules(hub_endpoint())), os.environ.get("HF_TOKEN") or None
    from atoll.adapters.s3 import S3  # s3fs takes a second to import

    endpoint = os.environ.get("AWS_ENDPOINT_URL") or None
    return S3([place.path.partition("/")[0]], _rules(endpoint), endpoint=endpoint), None


def _rules(endpoint: str | None) -> HostRules:
    host = urlsplit(endpoint or "").hostname
    hosts = (*HUB_HOSTS, "*.amazonaws.com", *([host] if host else []))
    return HostRules(hosts=hosts, private_hosts=(host,) if host else ())


def _push_to_hub(place: Place, folder: Path, *, public: bool, message: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if _HUB_ID.fullmatch(place.path) is None:
        raise UsageError(f"{place.path[:80]!r} is not the id of a hub's repository", mend="write hf://org/name")
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UsageError("a hub wants a token", mend="set HF_TOKEN to one that may write")
    hub = HfApi(hub_endpoint(), token=token, library_name="atoll")
    try:
        hub.create_repo(place.path, private=not public, exist_ok=True)
        if not public and not hub.repo_info(place.path).private:
            raise UsageError(f"{place} can be read by everybody", mend="say that this is meant: --public")
        commit = hub.upload_folder(
            repo_id=place.path, folder_path=folder, allow_patterns=list(_UPLOAD_ORDER), commit_message=message
        )
    except AtollError:
        raise
    except HfHubHTTPError as error:
        raise _refused(place, error.response.status_code) from None
    except OfflineModeIsEnabled:
        raise SourceUnavailable("the hub may not be asked", why="HF_HUB_OFFLINE is set", mend="unset it") from None
    except Exception as error:
        # httpx's, hf_xet's and others' errors; what they say may hold signed addresses.
        raise SourceUnavailable("the upload did not succeed", where=str(place), why=type(error).__name__) from None
    return str(commit.commit_url)


def _refused(place: Place, status: int) -> AtollError:
    if status in (401, 403, 404):
        why = f"the hub answers {status}"
        return AdapterNotFound(f"{place} is not open to this token", why=why, mend="use a token that may write there")
    return SourceUnavailable(f"the hub answers {status}", where=str(place), mend="try again")


def _push_to_s3(place: Place, folder: Path) -> str:
    from atoll.adapters.s3 import BUCKET, KEY, explained, file_system

    bucket, _, key = place.path.partition("/")
    if not (BUCKET.fullmatch(bucket) and KEY.fullmatch(key)):
        raise UsageError(f"{place.path[:80]!r} cannot be a folder in s3", mend="write s3://bucket/folder")
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or None
    files: Any = file_system(_rules(endpoint), endpoint)
    for name in _UPLOAD_ORDER:
        if (folder / name).is_file():
            try:
                with explained():
                    files.put_file(str(folder / name), f"{place.path}/{name}")
            except AdapterNotFound:
                raise AdapterNotFound(
                    f"the bucket {bucket!r} is not there, or not open to these credentials", mend="make the bucket"
                ) from None
    return str(place)
