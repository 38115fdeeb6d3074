"""`atoll keys`: who may use the servers of a database, and what they have used."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.output import Column, print_json, print_table

if TYPE_CHECKING:
    from atoll.server.keys.database import Database
    from atoll.server.keys.keys import Key
    from atoll.server.keys.usage import UsageRow

keys = typer.Typer(
    help="Make, list and revoke the keys of servers, and see what they have used.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

DatabaseName = Annotated[
    str | None,
    typer.Option(
        envvar="ATOLL_DATABASE",
        help="An SQLite file or postgresql://user:password@host/name; atoll.db in the data folder unless given.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
_UNITS_S = {"m": 60, "h": 3600, "d": 86400}


class ScopeName(StrEnum):
    """What a key is for."""

    USE = "use"
    ADMIN = "admin"


@keys.command("create")
def create(
    name: Annotated[str, typer.Option(help="What the key is for.")] = "key",
    tenant: Annotated[str, typer.Option(help="Keys of one tenant share the prefix cache and their turn.")] = "default",
    scope: Annotated[
        list[ScopeName] | None,
        typer.Option(help="use: ask the models; admin: metrics and changes of the server; repeat for both. [use]"),
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="Adapters it may use, such as 'support-*'; repeat for more. [all]")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Requests in a minute.")] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Tokens in a minute, prompts and answers.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests at once.")] = None,
    expires: Annotated[str | None, typer.Option(help="After a time (12h, 30d) or on a day (2027-01-31, UTC).")] = None,
    priority: Annotated[int, typer.Option(help="Among the requests of its tenant smaller goes first.")] = 0,
    database: DatabaseName = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown once, alone on stdout; only a digest of it is kept.

    Example: KEY=$(atoll keys create --tenant acme --adapter 'support-*' --expires 30d)
    """
    from atoll.server.keys.keys import KeyLimits, KeyStore, NewKey

    limits = KeyLimits(
        requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, concurrency=concurrency
    )
    new = NewKey(
        name=name,
        tenant=tenant,
        scopes=frozenset(name.value for name in scope or (ScopeName.USE,)),
        adapters=tuple(adapter or ("*",)),
        priority=priority,
        limits=limits,
        expires_at_s=None if expires is None else expiry_s(expires, time.time()),
    )
    with _opened(database) as opened:
        key, text = KeyStore(opened).create(new)
    if as_json:
        print_json({"key": text, **_fields(key)})
        return
    print(text)
    print(f"key {key.key_id} of tenant {key.tenant}: keep it, it is not shown again", file=sys.stderr)


@keys.command("list")
def list_keys(database: DatabaseName = None, as_json: AsJson = False) -> None:
    """List all keys, revoked and expired ones too.

    Example: atoll keys list
    """
    from atoll.server.keys.keys import KeyStore

    with _opened(database) as opened:
        found = KeyStore(opened).list()
    if as_json:
        for key in found:
            print_json(_fields(key))
    elif found:
        names = ("id", "name", "tenant", "scopes", "adapters", "limits", "state")
        print_table([Column(name) for name in names], map(_cells, found))
    else:
        print("no keys; make one with `atoll keys create`")


@keys.command("revoke")
def revoke(
    key_ids: Annotated[list[str], typer.Argument(metavar="KEY_ID...", help="Ids from `atoll keys list`.")],
    database: DatabaseName = None,
    as_json: AsJson = False,
) -> None:
    """End keys: running servers refuse them within seconds.

    Example: atoll keys revoke 3f9c1a2b7d04
    """
    from atoll.server.keys.keys import KeyStore

    with _opened(database) as opened:
        KeyStore(opened).revoke(key_ids)
    if as_json:
        for key_id in key_ids:
            print_json({"revoked": key_id})
    else:
        print(f"revoked: {', '.join(key_ids)}")


@keys.command("usage")
def usage(
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="From this day on (UTC); all days unless given.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="One key's id.")] = None,
    database: DatabaseName = None,
    as_json: AsJson = False,
) -> None:
    """Show what keys have used, by day, key and adapter; a server's last second may be missing.

    Example: atoll keys usage --since 2026-11-01 --json
    """
    from atoll.server.keys.usage import UsageStore

    with _opened(database) as opened:
        rows = UsageStore(opened).report(since.date() if since else None, key)
    if as_json:
        for row in rows:
            print_json(_usage_fields(row))
    elif rows:
        texts = [Column(name) for name in ("day", "key", "tenant", "adapter")]
        numbers = ("requests", "prompt", "cached", "generated", "seconds", "USD")
        print_table([*texts, *(Column(name, is_number=True) for name in numbers)], map(_usage_cells, rows))
    else:
        print("nothing has been used")


def expiry_s(text: str, now_s: float) -> int:
    """When a key ends, in Unix seconds. Raises UsageError."""
    from atoll.errors import UsageError

    found = re.fullmatch(r"([1-9]\d{0,4})([mhd])", text)
    if found:
        return int(now_s) + int(found[1]) * _UNITS_S[found[2]]
    try:
        day = date.fromisoformat(text)
    except ValueError:
        mend = "write a time such as 12h or 30d, or a day such as 2027-01-31"
        raise UsageError(f"{text!r} is no time", where="--expires", mend=mend) from None
    at_s = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    if at_s <= now_s:
        raise UsageError(f"{text} is over", where="--expires", mend="name a day to come")
    return at_s


@contextmanager
def _opened(name: str | None) -> Iterator[Database]:
    from atoll.server.keys.database import Database, database_url

    database = Database(database_url(name))
    try:
        yield database
    finally:
        database.close()


def _fields(key: Key) -> dict[str, Any]:
    return {
        "id": key.key_id,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": sorted(key.scopes),
        "adapters": list(key.adapters),
        "priority": key.priority,
        **vars(key.limits),
        "created": _moment(key.created_at_s),
        "expires": _moment(key.expires_at_s),
        "revoked": _moment(key.revoked_at_s),
    }


def _moment(at_s: int | None) -> str | None:
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")


def _cells(key: Key) -> list[str]:
    limits = key.limits
    parts = [
        f"{limit} {what}"
        for limit, what in (
            (limits.requests_per_minute, "requests/min"),
            (limits.tokens_per_minute, "tokens/min"),
            (limits.concurrency, "at once"),
        )
        if limit is not None
    ]
    state = "valid"
    if key.revoked_at_s is not None:
        state = "revoked"
    elif key.expires_at_s is not None:
        ends = datetime.fromtimestamp(key.expires_at_s, UTC)
        state = f"{'expired' if key.expires_at_s <= time.time() else 'until'} {ends:%Y-%m-%d %H:%M}"
    scopes, adapters = ", ".join(sorted(key.scopes)), ", ".join(key.adapters)
    return [key.key_id, key.name, key.tenant, scopes, adapters, ", ".join(parts) or "-", state]


def _usage_fields(row: UsageRow) -> dict[str, Any]:
    return {
        "day": row.day.isoformat(),
        "key_id": row.key_id,
        "name": row.name,
        "tenant": row.tenant,
        "adapter": row.adapter,
        **vars(row.sums),
    }


def _usage_cells(row: UsageRow) -> list[str]:
    sums = row.sums
    counts = sums.requests, sums.prompt_tokens, sums.cached_tokens, sums.generated_tokens
    numbers = [*(f"{count:,}" for count in counts), f"{sums.seconds:,.1f}", f"{sums.cost_usd:.4f}"]
    return [row.day.isoformat(), f"{row.key_id} {row.name}", row.tenant, row.adapter or "(base)", *numbers]
