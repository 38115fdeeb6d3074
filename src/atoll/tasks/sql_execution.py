"""Runs two queries on the databases of the task `sql` and compares what they give, safely.

A query comes from a model, so it may only read: an authorizer allows SELECT over the tables and harmless functions,
each run has its own copy of the database in memory, and the number of virtual-machine instructions, of rows and of
bytes is limited. Limits count work instead of time, so that a score does not depend on the machine.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from contextlib import closing

from atoll.errors import DataError
from atoll.tasks.generated.sql_tables import NUM_DATABASES, database_image

MAX_INSTRUCTIONS = 2_000_000  # about 30 ms; the task's own queries need fewer than 10,000
MAX_ROWS = 1_000
MAX_SQL_BYTES = 4_096
MAX_VALUE_BYTES = 65_536
_INSTRUCTIONS_PER_CHECK = 10_000
_FUNCTIONS = frozenset(
    ("abs", "avg", "coalesce", "count", "ifnull", "iif", "instr", "length", "like", "lower", "max", "min", "nullif",
     "replace", "round", "substr", "substring", "sum", "total", "trim", "upper")
)  # fmt: skip
_FENCE = re.compile(r"```(?:\w*\n)?(.*?)(?:```|\Z)", re.DOTALL)

Value = str | float | bytes | None
Row = tuple[Value, ...]


class QueryError(Exception):
    """A query that is not valid, is not allowed, or goes over a limit."""


def same_result(prediction: str, reference: str) -> bool:
    """Whether both queries give the same rows on every database; in the same order if the reference orders them.

    Column names do not matter. The prediction may stand in a Markdown code fence. Raises DataError when the reference
    itself cannot be run.
    """
    ordered = re.search(r"\border\s+by\b", reference, re.IGNORECASE) is not None
    query = bare_query(prediction)
    for seed in range(NUM_DATABASES):
        try:
            expected = run_query(reference, seed)
        except QueryError as error:
            mend = "metric sql_execution fits the tables of the task `sql` only; use accuracy for other tables"
            raise DataError("the reference query cannot be run", where=reference, why=str(error), mend=mend) from error
        try:
            given = run_query(query, seed)
        except QueryError:
            return False
        if given != expected if ordered else Counter(given) != Counter(expected):
            return False
    return True


def run_query(query: str, seed: int = 0) -> list[Row]:
    """The rows that a query gives on the database of that seed; numbers as floats. Raises QueryError."""
    if "\0" in query:
        raise QueryError("a NUL character")
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(database_image(seed))
        _restrict(connection)
        try:
            cursor = connection.execute(query)
            found = cursor.fetchmany(MAX_ROWS + 1)
        except (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeError) as error:
            raise QueryError(str(error)) from error
    if cursor.description is None:
        raise QueryError("no query")
    if len(found) > MAX_ROWS:
        raise QueryError(f"more than {MAX_ROWS} rows")
    return [tuple(_comparable(value) for value in row) for row in found]


def bare_query(text: str) -> str:
    """The query of an answer that may put it into a Markdown code fence."""
    fenced = _FENCE.search(text)
    return (fenced[1] if fenced else text).strip()


def _comparable(value: Value) -> Value:
    """Numbers rounded, so that sums in another order are equal."""
    return round(float(value), 6) if isinstance(value, int | float) else value


def _restrict(connection: sqlite3.Connection) -> None:
    connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, MAX_SQL_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 50)
    connection.setlimit(sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 10)
    connection.setlimit(sqlite3.SQLITE_LIMIT_COLUMN, 100)
    connection.set_authorizer(_authorize)
    num_checks = 0

    def over_limit() -> bool:
        nonlocal num_checks
        num_checks += 1
        return num_checks * _INSTRUCTIONS_PER_CHECK > MAX_INSTRUCTIONS

    connection.set_progress_handler(over_limit, _INSTRUCTIONS_PER_CHECK)


def _authorize(action: int, _first: str | None, second: str | None, *_rest: str | None) -> int:
    """SQLite's question before it compiles each part of a statement; `second` is the function's name for functions."""
    if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ):
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and second is not None and second.lower() in _FUNCTIONS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
