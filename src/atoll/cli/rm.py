"""`atoll rm`: take an adapter, or one revision of it, out of the store."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from atoll.cli.options import AdapterId, AsJson, Store
from atoll.cli.output import print_json, size_text


def rm(
    adapter: AdapterId,
    store: Store = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove an adapter with all its revisions, or the one revision that is named.

    Files that other names or revisions share stay. A running server goes on with what it has in memory; it finds
    nothing on disk any more.

    Example: atoll rm sentiment@1 --yes
    """
    from atoll.cli.loading import open_store
    from atoll.errors import UsageError

    opened = open_store(store)
    name, _, revision = adapter.partition("@")
    num_revisions = len(opened.revisions(name))  # by the list alone: one whose files are gone can be removed too
    what = adapter if revision else f"{name}, {num_revisions} revision{'s' * (num_revisions > 1)},"
    if not yes:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise UsageError(f"{what} would be removed for good", mend="say so: --yes")
        typer.confirm(f"Remove {what} from {opened.root}?", abort=True)
    removed = opened.remove(adapter)
    if as_json:
        print_json({"removed": list(removed.ids), "freed_bytes": removed.freed_bytes})
    else:
        print(f"removed {', '.join(removed.ids)}; {size_text(removed.freed_bytes)} freed")
