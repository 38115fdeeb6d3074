"""`atoll push`: an adapter goes to a hub or into a bucket."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli.options import AdapterId, AsJson, Store
from atoll.cli.output import print_json

if TYPE_CHECKING:
    from atoll.adapters.store import StoredAdapter


def push(
    adapter: AdapterId,
    to: Annotated[str, typer.Argument(metavar="ADDRESS", help="hf://org/name or s3://bucket/folder.")],
    public: Annotated[
        bool, typer.Option("--public", help="On a hub: let everybody read it. It is private unless you say so.")
    ] = False,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Upload an adapter, with its contract and its card, to a Hugging Face hub or a bucket of S3.

    The hub's token comes from HF_TOKEN, its address from HF_ENDPOINT; S3's credentials and address from AWS_*.

    Example: HF_TOKEN=... atoll push sentiment hf://my-org/sentiment
    """
    from atoll.adapters.export import copy_files
    from atoll.adapters.places import parse_place, push
    from atoll.cli.loading import open_store

    place = parse_place(to)
    stored = open_store(store).resolve(adapter)
    _warn(stored)
    with tempfile.TemporaryDirectory(prefix="atoll-push-") as folder:
        # A copy: what is uploaded is whole and checked, whatever happens to the store meanwhile.
        files = copy_files(stored, Path(folder))
        where = push(place, Path(folder), public=public, message=f"{stored.id} ({stored.digest[:12]})")
    if as_json:
        print_json({"adapter": stored.id, "digest": stored.digest, "address": str(place), "url": where, "files": files})
    else:
        print(f"{stored.id} is at {where} ({', '.join(files)})")


def _warn(stored: StoredAdapter) -> None:
    base = stored.contract.base.name if stored.contract else ""
    if Path(base).is_absolute():
        print(f"note: the contract names the base model by a folder of this machine, {base}", file=sys.stderr)
