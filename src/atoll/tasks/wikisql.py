"""WikiSQL's queries: read as they are written there or in plain SQL, compared by meaning, run on made-up rows.

WikiSQL writes `SELECT [MAX|MIN|COUNT|SUM|AVG] column FROM table [WHERE column = value AND ...]` with bare names and
values, which no SQL parser reads: `SELECT yes votes FROM table WHERE % yes = 12.4`. The names of the table's columns
tell where a name ends. Nothing of a query is ever given to a database as it stands.
"""

from __future__ import annotations

import hashlib
import random
import re
import sqlite3
import unicodedata
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

MAX_QUERY_CHARS = 2_000
MAX_CONDITIONS = 10
# Several tables, since one can hide a difference of MAX or MIN by chance.
_NUM_TABLES = 8
_NUM_ROWS = 48
_AGGREGATES = ("MAX", "MIN", "COUNT", "SUM", "AVG")
_FENCE = re.compile(r"```(?:\w*\n)?(.*?)(?:```|\Z)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")
_QUOTES = "\"'`[]"

Value = str | float


@dataclass(frozen=True)
class Condition:
    """`column` compared with `value` by =, < or >; column: its place in the table."""

    column: int
    operator: str
    value: Value


@dataclass(frozen=True)
class Query:
    """A query's meaning: conditions have no order, and repeated ones are one."""

    aggregate: str | None
    column: int
    conditions: frozenset[Condition]


def table_columns(table: str) -> list[str]:
    """The column names of a table as the data write it: joined by ` | `."""
    return [name for name in (part.strip() for part in table.split(" | ")) if name]


def read_query(text: str, columns: Sequence[str]) -> Query | None:
    """The query in `text`, which may be quoted as SQL and stand in a code fence; None if it is none over `columns`."""
    fenced = _FENCE.search(text[:MAX_QUERY_CHARS])
    bare = _fold(fenced[1] if fenced else text[:MAX_QUERY_CHARS]).rstrip("; ")
    if not bare.startswith("select "):
        return None
    names = _names(columns)
    # A column or a value may itself hold "from" or "where": the first split that reads as a whole query counts.
    for match in re.finditer(r" from [\"'`\[]?\w+[\"'`\]]?(?= where |$)", bare):
        head = _read_head(bare[len("select ") : match.start()], names)
        conditions = _read_conditions(bare[match.end() :], names)
        if head is not None and conditions is not None:
            return Query(*head, frozenset(conditions))
    return None


def same_rows(query: Query, reference: Query, columns: Sequence[str]) -> bool:
    """Whether both give the same rows on eight tables with these columns.

    The tables are made of the values that the two name and their neighbours, so that a query that differs gives other
    rows; they depend on the two queries alone.
    """
    chance = random.Random(hashlib.sha256(repr((_key(query), _key(reference))).encode()).digest())
    with closing(sqlite3.connect(":memory:")) as connection:
        # No column has a type: a number stays a number and a text a text.
        connection.execute(f"CREATE TABLE data ({', '.join(f'c{index}' for index in range(len(columns)))})")
        for _ in range(_NUM_TABLES):
            connection.execute("DELETE FROM data")
            rows = _rows(query, reference, len(columns), chance)
            connection.executemany(f"INSERT INTO data VALUES ({', '.join('?' * len(columns))})", rows)
            if _run(connection, query) != _run(connection, reference):
                return False
    return True


def _fold(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _names(columns: Sequence[str]) -> list[tuple[str, int]]:
    """(folded name, place), longer names first, so that `yes votes` is not read as `yes`."""
    return sorted(((_fold(name), index) for index, name in enumerate(columns)), key=lambda item: -len(item[0]))


def _read_head(text: str, names: Sequence[tuple[str, int]]) -> tuple[str | None, int] | None:
    column = _column(text, names)
    if column is not None:
        return None, column
    for aggregate in _AGGREGATES:
        rest = text.removeprefix(aggregate.lower()).strip()
        if text.startswith(aggregate.lower()):
            column = _column(rest, names)
            bracketed = rest[1:-1] if rest[:1] == "(" and rest[-1:] == ")" else rest
            column = _column(bracketed, names) if column is None else column
            if column is not None:
                return aggregate, column
    return None


def _column(text: str, names: Sequence[tuple[str, int]]) -> int | None:
    for spelling in (text.strip(), text.strip().strip(_QUOTES)):
        for name, index in names:
            if spelling == name:
                return index
    return None


def _read_conditions(text: str, names: Sequence[tuple[str, int]]) -> list[Condition] | None:
    """The conditions after the table's name. A value ends where ` and ` is followed by a column and an operator."""
    if not text:
        return []
    text = text.removeprefix(" where ")
    options = "|".join(re.escape(name) for name, _ in names)
    start = re.compile(rf"(?:^| and )[\"'`\[(]?({options})[\"'`\]]? ?(=|<|>) ?")
    found = list(start.finditer(text))
    if not found or found[0].start() != 0 or len(found) > MAX_CONDITIONS:
        return None
    places = dict(reversed(names))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return [
        Condition(places[match[1]], match[2], _value(text[match.end() : end]))
        for match, end in zip(found, ends, strict=True)
    ]


def _value(text: str) -> Value:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        text = text[1:-1].strip()
    return float(text.replace(",", "")) if _NUMBER.fullmatch(text) else text


def _rows(query: Query, reference: Query, num_columns: int, chance: random.Random) -> list[list[Value]]:
    """Rows that meet all, some and none of the conditions; cells of columns that are not compared all differ."""
    pools: list[list[Value]] = [[] for _ in range(num_columns)]
    for condition in sorted(query.conditions | reference.conditions, key=repr):
        pools[condition.column] += _neighbours(condition.value)
    rows: list[list[Value]] = []
    for number in range(_NUM_ROWS):
        fillers: list[Value] = [float(chance.randrange(10**6)) for _ in pools]
        row = [chance.choice(pool) if pool else filler for pool, filler in zip(pools, fillers, strict=True)]
        # One row in two meets the conditions of one of the queries; in half of these, most of them.
        if number % 2 == 0:
            meant = sorted((reference if number % 4 else query).conditions, key=repr)
            kept = meant if number % 8 < 4 else [item for item in meant if chance.random() < 0.7]
            for condition in kept:
                row[condition.column] = _meeting(condition)
        rows.append(row)
    return rows


def _key(query: Query) -> tuple[str | None, int, list[str]]:
    return query.aggregate, query.column, sorted(map(repr, query.conditions))


def _neighbours(value: Value) -> list[Value]:
    if isinstance(value, float):
        return [value, value - 1, value + 1, value - 0.5, value + 0.5]
    return [value, f"{value} and more", f"not {value}"]


def _meeting(condition: Condition) -> Value:
    if isinstance(condition.value, float):
        return condition.value + {"=": 0.0, "<": -0.5, ">": 0.5}[condition.operator]
    return condition.value if condition.operator == "=" else f"{condition.value} and more"


def _run(connection: sqlite3.Connection, query: Query) -> Counter[tuple[Value | None, ...]]:
    column = f"c{query.column}"
    what = f"{query.aggregate}({column})" if query.aggregate else column
    conditions = sorted(query.conditions, key=repr)
    where = " AND ".join(f"c{condition.column} {condition.operator} ?" for condition in conditions)
    statement = f"SELECT {what} FROM data" + (f" WHERE {where}" if where else "")
    return Counter(connection.execute(statement, [condition.value for condition in conditions]).fetchall())
