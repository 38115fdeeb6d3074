"""Queries compared by their trees, and WikiSQL's by their meaning and by what they give."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import DataError
from atoll.tasks.dataset import load_split
from atoll.tasks.metrics import METRICS, Answer
from atoll.tasks.task import find_task
from atoll.tasks.wikisql import Condition, Query, read_query, same_rows, table_columns

QUERY = "SELECT name FROM players WHERE team = 'Bears' AND age > 30"
TABLE = "player | yes votes | no votes | % yes | from | yes"
COLUMNS = table_columns(TABLE)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("select NAME from players\nwhere 30 < Age and ('Bears' = team); -- done", QUERY, 1),
        ("```sql\nSELECT \"name\" AS n FROM players WHERE (age > 30) AND (team = 'Bears')\n```", QUERY, 1),
        (QUERY.replace("AND", "OR"), QUERY, 0),
        (QUERY.replace("Bears", "bears"), QUERY, 0),
        (QUERY.replace(">", ">="), QUERY, 0),
        (QUERY + " LIMIT 1", QUERY, 0),
        ("SELECT a FROM t WHERE b = 1 AND c = 2 AND d = 3", "SELECT a FROM t WHERE d = 3 AND (c = 2 AND b = 1)", 1),
        ("SELECT a FROM t WHERE b = 1 OR c = 2 AND d = 3", "SELECT a FROM t WHERE (b = 1 OR c = 2) AND d = 3", 0),
        ("SELECT (a + b) * c FROM t", "SELECT a + b * c FROM t", 0),
        ("SELECT a, b FROM t", "SELECT b, a FROM t", 0),
        ("SELECT COUNT(*) FROM t", "SELECT count(*) AS number FROM t", 1),
    ],
)
def test_trees_are_equal_but_for_their_form(prediction: str, reference: str, expected: float) -> None:
    assert METRICS["sql_canonical"].score([(prediction, reference)]) == expected
    assert METRICS["sql_canonical"].score([(reference, prediction.strip("`").removeprefix("sql\n"))]) == expected


@pytest.mark.parametrize(
    "query",
    ["", "Here is it", "DROP TABLE players", QUERY + "; " + QUERY, "SELECT " + "(" * 2_000, "SELECT 1 " + "-" * 5_000,
     "SELECT " + "NOT " * 1_000 + "1", "\0", "SELECT '\ud800'", "(" * 4_000 + "SELECT 1" + ")" * 4_000],
)  # fmt: skip
def test_what_is_no_query_is_wrong_and_harms_nothing(query: str) -> None:
    assert METRICS["sql_canonical"].score([(query, QUERY)]) == 0


def test_a_reference_that_is_no_query_is_an_error_of_the_data() -> None:
    with pytest.raises(DataError, match="cannot be read"):
        METRICS["sql_canonical"].score([(QUERY, "SELECT MIN pick # FROM table")])
    with pytest.raises(DataError, match="no query over the table's columns"):
        METRICS["wikisql_logical"].score([Answer("x", "SELECT goals FROM table", {"table": TABLE})])


GOLD = "SELECT COUNT player FROM table WHERE % yes > 12.5 AND from = new york and texas"


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (GOLD, 1),
        ("select count player from table where from = new york and texas and % yes > 12.5", 1),
        ('SELECT COUNT("player") FROM table WHERE "% yes" > 12.50 AND "from" = \'New York and Texas\';', 1),
        ("```sql\nSELECT COUNT(player) FROM data WHERE `from` = 'new york and texas' AND [% yes] > 12.5\n```", 1),
        (GOLD.replace("COUNT", "MAX"), 0),
        (GOLD.replace("COUNT ", ""), 0),
        (GOLD.replace("12.5", "12"), 0),
        (GOLD.replace("> 12.5", "< 12.5"), 0),
        (GOLD.replace("% yes", "yes"), 0),
        (GOLD.split(" AND")[0], 0),
        (GOLD.replace("player", "goals"), 0),
        (GOLD + " ORDER BY player", 0),
        ("COUNT player", 0),
        ("", 0),
    ],
)
def test_wikisql_is_read_as_it_is_written_and_as_sql(prediction: str, expected: float) -> None:
    for metric in ("wikisql_logical", "wikisql_execution"):
        assert METRICS[metric].score([Answer(prediction, GOLD, {"table": TABLE})]) == expected


def test_what_differs_in_form_alone_gives_the_same_rows() -> None:
    gold = "SELECT player FROM table WHERE yes > 5"
    twice = "SELECT player FROM table WHERE yes > 5 AND yes > 3"
    assert METRICS["wikisql_logical"].score([Answer(twice, gold, {"table": TABLE})]) == 0
    assert METRICS["wikisql_execution"].score([Answer(twice, gold, {"table": TABLE})]) == 1


values = st.one_of(st.sampled_from(["oslo", "new york and texas", "3-1", "it's"]), st.integers(0, 99).map(float))
conditions = st.builds(Condition, st.integers(0, 5), st.sampled_from("=<>"), values)
queries = st.builds(
    Query,
    st.sampled_from([None, "MAX", "MIN", "COUNT", "SUM", "AVG"]),
    st.integers(0, 5),
    st.frozensets(conditions, max_size=3),
)


def written(query: Query) -> str:
    head = f"{query.aggregate} {COLUMNS[query.column]}" if query.aggregate else COLUMNS[query.column]
    parts = [f"{COLUMNS[item.column]} {item.operator} {item.value}" for item in sorted(query.conditions, key=repr)]
    return f"SELECT {head} FROM table" + (f" WHERE {' AND '.join(parts)}" if parts else "")


@given(query=queries)
def test_a_query_that_is_written_down_is_read_back(query: Query) -> None:
    assert read_query(written(query), COLUMNS) == query
    assert same_rows(query, query, COLUMNS)


@given(query=queries, other=queries)
def test_execution_is_symmetric(query: Query, other: Query) -> None:
    if not same_rows(query, other, COLUMNS):
        assert query != other


@given(text=st.text(max_size=200))
def test_any_text_is_a_query_or_none(text: str) -> None:
    assert read_query(text, COLUMNS) is None or "from" in text.casefold()


def test_every_query_of_the_data_is_read_and_no_changed_one_passes(loraland: Path) -> None:
    for example in load_split(find_task("wikisql"), "test", data_root=loraland, limit=300, for_scoring=True):
        columns = table_columns(example.columns["table"])
        query = read_query(example.row["sql"], columns)
        assert query is not None
        assert same_rows(query, query, columns)
        other = Query("MIN" if query.aggregate == "MAX" else "MAX", query.column, query.conditions)
        assert not same_rows(other, query, columns)
        for condition in query.conditions:
            number = condition.value + 1 if isinstance(condition.value, float) else f"{condition.value}s"
            changed = Condition(condition.column, condition.operator, number)
            other = Query(query.aggregate, query.column, query.conditions - {condition} | {changed})
            assert not same_rows(other, query, columns)
