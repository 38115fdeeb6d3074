"""`atoll ls`: the adapters in the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from atoll.adapters.store import StoredAdapter


def ls(
    store: Annotated[
        Path | None, typer.Option(envvar="ATOLL_STORE", help="The folder that holds the adapters.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """List the adapters in the store, latest revisions.

    Example: atoll ls
    """
    from atoll.cli.loading import open_store

    opened = open_store(store)
    adapters = opened.list()
    if as_json:
        for adapter in adapters:
            print(json.dumps(_fields(adapter), ensure_ascii=False))
    elif adapters:
        _print_table(adapters)
    else:
        print(f"no adapters in {opened.root}; make some with `atoll tune FLEET.yaml`")


def _fields(adapter: StoredAdapter) -> dict[str, Any]:
    contract = adapter.contract
    training = contract.training if contract else None
    return {
        "id": adapter.id,
        "digest": adapter.digest,
        "task": contract.task if contract else None,
        "description": contract.description if contract else None,
        "base_model": contract.base.name if contract else None,
        "columns": contract.prompt.columns if contract else None,
        "num_examples": training.num_examples if training else None,
        "created": training.created if training else None,
        "size_bytes": adapter.size_bytes,
        "folder": str(adapter.folder),
    }


def _print_table(adapters: list[StoredAdapter]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("adapter", "task", "base model", "columns"):
        table.add_column(name, overflow="fold")
    for name in ("examples", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("created", no_wrap=True)
    for adapter in adapters:
        fields = _fields(adapter)
        table.add_row(
            fields["id"],
            fields["task"] or "-",
            _short(fields["base_model"] or "-"),
            ", ".join(fields["columns"] or ()) or "-",
            str(fields["num_examples"] or "-"),
            f"{fields['size_bytes'] / 2**20:.1f} MiB",
            (fields["created"] or "-")[:10],
        )
    Console(markup=False).print(table)


def _short(base: str) -> str:
    """A base model's folder is shown by its own name."""
    return Path(base).name if Path(base).is_absolute() else base
