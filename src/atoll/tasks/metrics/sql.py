"""Metrics of queries: equal in form, equal in meaning, equal in what they give."""

from __future__ import annotations

from collections.abc import Callable

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from atoll.errors import DataError
from atoll.tasks.metrics.metric import Stats
from atoll.tasks.sql_execution import MAX_SQL_BYTES, bare_query, same_result
from atoll.tasks.wikisql import Query, read_query, same_rows, table_columns


def sql_execution(prediction: str, reference: str) -> Stats:
    """(1 if both queries give the same rows on every database of the task `sql`, 1). Raises DataError."""
    return float(same_result(prediction, reference)), 1.0


def sql_canonical(prediction: str, reference: str) -> Stats:
    """(1 if both are one query but for its form, 1). Raises DataError when the reference cannot be read.

    Form is: case outside of quotes, spacing, comments, a semicolon, brackets and column aliases without effect, the
    order of what AND and OR join, and the side on which a comparison has its operands.
    """
    expected = _canonical(reference)
    if expected is None:
        mend = "metric sql_canonical reads SQLite's dialect; WikiSQL's own form is for wikisql_logical"
        raise DataError("the reference query cannot be read", where=reference[:200], mend=mend)
    return float(_canonical(bare_query(prediction)) == expected), 1.0


def wikisql_logical(prediction: str, reference: str, table: str) -> Stats:
    """(1 if both ask for the same column, aggregate and set of conditions, 1). Raises DataError.

    WikiSQL's logical form accuracy, with conditions in any order, and also for a prediction in plain, quoted SQL.
    """
    return _compare(prediction, reference, table, lambda given, expected, _columns: given == expected)


def wikisql_execution(prediction: str, reference: str, table: str) -> Stats:
    """(1 if both give the same rows on a table made of the values that they name, 1). Raises DataError.

    The data have no cells, so this is not WikiSQL's execution accuracy on the real tables, but stricter.
    """
    return _compare(prediction, reference, table, same_rows)


def _compare(prediction: str, reference: str, table: str, equal: Callable[[Query, Query, list[str]], bool]) -> Stats:
    columns = table_columns(table)
    expected = read_query(reference, columns)
    if expected is None:
        mend = "check the row: each name in the query must be a column that `table` lists, joined by ' | '"
        raise DataError("the reference is no query over the table's columns", where=reference[:200], mend=mend)
    given = read_query(prediction, columns)
    return float(given is not None and equal(given, expected, columns)), 1.0


def _canonical(query: str) -> exp.Query | None:
    """The query's tree in one form; None for what is no single query."""
    if len(query.encode("utf-8", "replace")) > MAX_SQL_BYTES:
        return None
    try:
        parsed = sqlglot.parse(query, read="sqlite")
        statements = [tree for tree in parsed if tree is not None and not isinstance(tree, exp.Semicolon)]
        if len(statements) != 1 or not isinstance(statements[0], exp.Query):
            return None
        return _ordered(statements[0])
    except (SqlglotError, RecursionError, ValueError):
        return None


def _ordered(tree: exp.Query) -> exp.Query:
    """The tree without what changes nothing: names in lower case, operands of AND, OR, = and <> sorted, > as <."""
    for node in reversed(list(tree.walk(bfs=True))):
        node.comments = None
        if isinstance(node, exp.Identifier):
            node.replace(exp.to_identifier(node.name.lower(), quoted=False))
        elif _adds_nothing(node):
            node.replace(node.this)
        elif isinstance(node, exp.GT | exp.GTE):
            swapped = exp.LT if isinstance(node, exp.GT) else exp.LTE
            node.replace(swapped(this=node.expression, expression=node.this))
        elif isinstance(node, exp.EQ | exp.NEQ):
            _sort_sides(node)
        elif isinstance(node, exp.And | exp.Or) and not isinstance(node.parent, type(node)):
            _sort_chain(node)
    return tree


def _adds_nothing(node: exp.Expr) -> bool:
    """Whether it is a column's alias, or brackets around anything but a query."""
    if isinstance(node, exp.Paren):
        return not isinstance(node.this, exp.Query)
    return isinstance(node, exp.Alias) and isinstance(node.parent, exp.Select)


def _sort_sides(node: exp.Binary) -> None:
    first, second = sorted((node.this, node.expression), key=repr)
    node.set("this", first)
    node.set("expression", second)


def _sort_chain(node: exp.Connector) -> None:
    parts = sorted((part.copy() for part in node.flatten()), key=repr)
    joined = parts[0]
    for part in parts[1:-1]:
        joined = type(node)(this=joined, expression=part)
    node.set("this", joined)
    node.set("expression", parts[-1])
