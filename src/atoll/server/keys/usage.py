"""What keys have used: lines of the journal, and their sums for each key, adapter and day."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from atoll.adapters.merger import MERGED_LABEL, MERGED_PREFIX
from atoll.log import get_logger
from atoll.server.keys.database import Database
from atoll.server.keys.tables import JOURNALS, KEYS, USAGE
from atoll.server.meter import Spent

logger = get_logger(__name__)

MAX_ADAPTER_CHARS = 512
_TOO_MUCH = 2**40
_MAX_ROWS_AT_ONCE = 500  # SQLite takes 32,766 values in one statement


@dataclass
class Sums:
    """What is added up. seconds: of wall time in the engine; cost_usd: 0 where no price is known."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
    cost_usd: float = 0.0

    def add(self, other: Sums) -> None:
        """Take another one in."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True, kw_only=True)
class UsageRow:
    """One line of a report. adapter: empty for the bare base. name and tenant: of the key; empty if it is unknown."""

    day: date
    key_id: str
    name: str
    tenant: str
    adapter: str
    sums: Sums


_Place = tuple[str, str, date]


def line_of(spent: Spent, *, at_s: float, price_per_token_usd: float) -> bytes:
    """A request as a line of the journal. Nothing a client can name makes a line that the database would refuse."""
    name = MERGED_LABEL if spent.adapter.startswith(MERGED_PREFIX) else spent.adapter
    adapter = name.encode(errors="backslashreplace").decode().replace("\0", "\\0")[:MAX_ADAPTER_CHARS]
    num_tokens = spent.num_prompt_tokens + spent.num_new_tokens
    fields = [
        int(at_s),
        spent.caller.key_id,
        adapter,
        spent.num_prompt_tokens,
        spent.num_cached_tokens,
        spent.num_new_tokens,
        round(spent.seconds, 6),
        num_tokens * price_per_token_usd,
    ]
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def sums_of(lines: Iterable[bytes]) -> dict[_Place, Sums]:
    """The lines of a journal, added up. A damaged line is logged and left out."""
    sums: dict[_Place, Sums] = defaultdict(Sums)
    for line in lines:
        try:
            place, used = _parsed(line)
        except (ValueError, TypeError, OverflowError, OSError, RecursionError):
            logger.error("a line of %d bytes in the journal of usage is damaged and left out", len(line))
        else:
            sums[place].add(used)
    return sums


def _parsed(line: bytes) -> tuple[_Place, Sums]:
    """Raises ValueError and the like for what line_of has not written."""
    at_s, key_id, adapter, prompt, cached, generated, seconds, cost = json.loads(line)
    numbers = prompt, cached, generated, seconds, cost
    if not all(0 <= number < _TOO_MUCH for number in numbers) or len(key_id) > 32 or len(adapter) > MAX_ADAPTER_CHARS:
        raise ValueError("out of range")
    used = Sums(1, int(prompt), int(cached), int(generated), float(seconds), float(cost))
    return (key_id, adapter, datetime.fromtimestamp(at_s, UTC).date()), used


class UsageStore:
    """The sums in a database. All methods raise DatabaseUnavailable when it does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, journal_id: str, start: int, content: bytes) -> int:
        """Add whole lines, the bytes of a journal from `start` on; returns up to where the journal is in the sums.

        That is `start` and the length of `content`; or another place, and nothing is added, where the database knows
        better. Both change in one transaction, so every line counts exactly once.
        """
        sums = sums_of(content.splitlines())
        with self._database.writing() as connection:
            known = self._known_bytes(connection, journal_id)
            if known != start:
                return known
            self._add_sums(connection, sums)
            end = start + len(content)
            connection.execute(update(JOURNALS).where(JOURNALS.c.journal_id == journal_id).values(num_bytes=end))
            return end

    def forget(self, journal_id: str) -> None:
        """A journal's file is gone: how far it was read is of no use any more."""
        with self._database.writing() as connection:
            connection.execute(delete(JOURNALS).where(JOURNALS.c.journal_id == journal_id))

    def report(self, since: date | None = None, key_id: str | None = None) -> list[UsageRow]:
        """The sums by day, key and adapter, oldest first."""
        wanted = select(USAGE, KEYS.c.name, KEYS.c.tenant).outerjoin(KEYS, KEYS.c.key_id == USAGE.c.key_id)
        if since is not None:
            wanted = wanted.where(USAGE.c.day >= since)
        if key_id is not None:
            wanted = wanted.where(USAGE.c.key_id == key_id)
        wanted = wanted.order_by(USAGE.c.day, USAGE.c.key_id, USAGE.c.adapter)
        with self._database.reading() as connection:
            rows = connection.execute(wanted).all()
        return [
            UsageRow(
                day=row.day,
                key_id=row.key_id,
                name=row.name or "",
                tenant=row.tenant or "",
                adapter=row.adapter,
                sums=Sums(*(getattr(row, name) for name in vars(Sums()))),
            )
            for row in rows
        ]

    def _known_bytes(self, connection: Connection, journal_id: str) -> int:
        """How far a journal is in the sums; its row is locked from now on."""
        values = {"journal_id": journal_id, "num_bytes": 0}
        connection.execute(self._insert(JOURNALS).values(values).on_conflict_do_nothing())
        wanted = select(JOURNALS.c.num_bytes).where(JOURNALS.c.journal_id == journal_id).with_for_update()
        return int(connection.execute(wanted).scalar_one())

    def _add_sums(self, connection: Connection, sums: dict[_Place, Sums]) -> None:
        # In one order everywhere: two servers that lock rows crosswise would wait for each other.
        rows = [
            dict(zip(("key_id", "adapter", "day"), place, strict=True)) | vars(sums[place]) for place in sorted(sums)
        ]
        for first in range(0, len(rows), _MAX_ROWS_AT_ONCE):
            insert = self._insert(USAGE).values(rows[first : first + _MAX_ROWS_AT_ONCE])
            grown = {name: USAGE.c[name] + insert.excluded[name] for name in vars(Sums())}
            places = [USAGE.c.key_id, USAGE.c.adapter, USAGE.c.day]
            connection.execute(insert.on_conflict_do_update(index_elements=places, set_=grown))

    def _insert(self, table: Any) -> Any:
        """The two databases spell `ON CONFLICT` alike, SQLAlchemy in two places."""
        return postgresql.insert(table) if self._database.is_postgres else sqlite.insert(table)
