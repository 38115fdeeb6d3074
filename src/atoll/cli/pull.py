"""`atoll pull`: an adapter from a hub or a bucket comes into the store."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.options import AsJson, Store
from atoll.cli.output import print_json, size_text


def pull(
    address: Annotated[
        str,
        typer.Argument(metavar="ADDRESS", help="hf://org/name, hf://org/name@revision or s3://bucket/folder."),
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="What it is called in the store; the address's last part unless given.")
    ] = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Download an adapter from a Hugging Face hub or a bucket of S3, check it, and store it.

    The hub's token comes from HF_TOKEN, its address from HF_ENDPOINT; S3's credentials and address from AWS_*.

    Example: atoll pull hf://my-org/sentiment --name sentiment
    """
    from atoll.adapters.places import fetch, parse_place
    from atoll.adapters.remote import check_remote_id
    from atoll.adapters.store import check_name
    from atoll.cli.loading import open_store

    place = parse_place(address)
    check_remote_id(place.path)
    name = name if name is not None else _name(place.path)
    check_name(name)
    with tempfile.TemporaryDirectory(prefix="atoll-pull-") as folder:
        listing = fetch(place, Path(folder))
        stored = open_store(store).publish(name, Path(folder))
    if as_json:
        fields = {"id": stored.id, "digest": stored.digest, "folder": str(stored.folder)}
        print_json(fields | {"address": str(place), "revision": listing.revision})
    else:
        print(f"{stored.id} is in the store ({size_text(stored.size_bytes)}, revision {listing.revision[:12]} there)")


def _name(path: str) -> str:
    """The last part of an address, as a name of the store."""
    last = path.partition("@")[0].rpartition("/")[2].lower()
    return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-._")[:64]
