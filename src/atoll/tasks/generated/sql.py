"""Questions about one small table, and the SQL queries that answer them.

The facts are queries: a query that occurs in one split occurs in no other, however it is asked for. The schema shows
the columns that the query needs and others, in the order of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from atoll.tasks.generated.partition import NUM_ROWS, Split, split_of, split_random
from atoll.tasks.generated.sql_tables import TABLES, Category, Number, Table

_NUM_SHOWN_COLUMNS = 4
_COMPARISONS = ((">", ("above", "over", "greater than")), ("<", ("below", "under", "less than")),
                (">=", ("of at least",)), ("<=", ("of at most",)))  # fmt: skip
_AGGREGATES = (("AVG", "average"), ("SUM", "total"), ("MAX", "highest"), ("MIN", "lowest"))


@dataclass(frozen=True)
class _Asked:
    """A question, its query, and the columns that the query uses."""

    question: str
    query: str
    columns: frozenset[str]


@dataclass(frozen=True)
class _Filter:
    """A condition in words and in SQL."""

    words: str
    sql: str
    columns: frozenset[str]


def rows(split: Split, seed: int = 0) -> list[dict[str, str]]:
    """Rows with the columns `schema`, `question` and `query`; no query occurs twice."""
    random = split_random("sql", split, seed)
    found: dict[str, dict[str, str]] = {}
    while len(found) < NUM_ROWS[split]:
        table = random.choice(TABLES)
        asked = random.choice(_KINDS)(table, random)
        if asked.query not in found and split_of(asked.query) == split:
            schema = _schema(table, asked.columns, random)
            found[asked.query] = {"schema": schema, "question": asked.question, "query": asked.query}
    return list(found.values())


def _schema(table: Table, needed: frozenset[str], random: Random) -> str:
    others = [column for column in table.columns if column not in needed]
    shown = needed | frozenset(random.sample(others, max(0, _NUM_SHOWN_COLUMNS - len(needed))))
    return f"{table.name}({', '.join(column for column in table.columns if column in shown)})"


def _filter(table: Table, random: Random) -> _Filter:
    """A condition on a category, on a number, or on both."""
    by_category, by_number = _category_filter(table, random), _number_filter(random.choice(table.numbers), random)
    kind = random.choice(("category", "number", "both"))
    if kind == "both":
        words, sql = f"{by_category.words} and {by_number.words}", f"{by_category.sql} AND {by_number.sql}"
        return _Filter(words, sql, by_category.columns | by_number.columns)
    return by_category if kind == "category" else by_number


def _category_filter(table: Table, random: Random) -> _Filter:
    column: Category = random.choice(table.categories)
    value = random.choice(column.values)
    return _Filter(column.where.format(value), f"{column.name} = '{value}'", frozenset({column.name}))


def _number_filter(column: Number, random: Random) -> _Filter:
    operator, words = random.choice(_COMPARISONS)
    value = random.choice(column.values[6:-6])  # so that rows lie on either side
    return _Filter(f"with {column.name} {random.choice(words)} {value}", f"{column.name} {operator} {value}",
                   frozenset({column.name}))  # fmt: skip


def _count(table: Table, random: Random) -> _Asked:
    where = _filter(table, random)
    start = random.choice(("How many {} are there", "Count the {}", "What is the number of {}"))
    question = f"{start.format(table.name)} {where.words}{'.' if start.startswith('Count') else '?'}"
    return _Asked(question, f"SELECT COUNT(*) FROM {table.name} WHERE {where.sql}", where.columns)


def _list(table: Table, random: Random) -> _Asked:
    where = _filter(table, random)
    wanted = random.choice(table.columns)
    start = random.choice(("List", "Show", "Give"))
    question = f"{start} the {wanted} of all {table.name} {where.words}."
    return _Asked(question, f"SELECT {wanted} FROM {table.name} WHERE {where.sql}", where.columns | {wanted})


def _look_up(table: Table, random: Random) -> _Asked:
    wanted = random.choice(table.columns[1:])
    value = random.choice(table.keys)
    question = random.choice(("What is the {} of {}?", "Tell me the {} of {}.")).format(wanted, value)
    query = f"SELECT {wanted} FROM {table.name} WHERE {table.key} = '{value}'"
    return _Asked(question, query, frozenset({wanted, table.key}))


def _aggregate(table: Table, random: Random) -> _Asked:
    where = _filter(table, random)
    function, word = random.choice(_AGGREGATES)
    column = random.choice(table.numbers)
    question = f"What is the {word} {column.name} of {table.name} {where.words}?"
    query = f"SELECT {function}({column.name}) FROM {table.name} WHERE {where.sql}"
    return _Asked(question, query, where.columns | {column.name})


def _top(table: Table, random: Random) -> _Asked:
    where = _category_filter(table, random)
    column = random.choice(table.numbers)
    word, order = random.choice((("highest", "DESC"), ("lowest", "ASC")))
    question = f"Which {table.singular} {where.words} has the {word} {column.name}?"
    query = f"SELECT {table.key} FROM {table.name} WHERE {where.sql} ORDER BY {column.name} {order} LIMIT 1"
    return _Asked(question, query, where.columns | {table.key, column.name})


def _per_group(table: Table, random: Random) -> _Asked:
    group = random.choice(table.categories)
    where = _number_filter(random.choice(table.numbers), random)
    question = f"How many {table.name} {where.words} are there for each {group.name}?"
    query = f"SELECT {group.name}, COUNT(*) FROM {table.name} WHERE {where.sql} GROUP BY {group.name}"
    return _Asked(question, query, where.columns | {group.name})


_KINDS: tuple[Callable[[Table, Random], _Asked], ...] = (_count, _list, _look_up, _aggregate, _top, _per_group)
