"""`atoll ls`: the adapters in the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.options import Store
from atoll.cli.output import Column, print_json, print_table, size_text

if TYPE_CHECKING:
    from atoll.adapters.store import StoredAdapter


def ls(
    store: Store = None,
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
            print_json(_fields(adapter))
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
    columns = [
        *(Column(name) for name in ("adapter", "task", "base model", "columns")),
        *(Column(name, is_number=True, folds=False) for name in ("examples", "size")),
        Column("created", folds=False),
    ]
    print_table(columns, [_cells(_fields(adapter)) for adapter in adapters])


def _cells(fields: dict[str, Any]) -> list[str]:
    return [
        fields["id"],
        fields["task"] or "-",
        _short(fields["base_model"] or "-"),
        ", ".join(fields["columns"] or ()) or "-",
        str(fields["num_examples"] or "-"),
        size_text(fields["size_bytes"]),
        (fields["created"] or "-")[:10],
    ]


def _short(base: str) -> str:
    """A base model's folder is shown by its own name."""
    return Path(base).name if Path(base).is_absolute() else base
