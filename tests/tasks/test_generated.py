"""The generated tasks: their splits never share a fact, and their answers are right."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest
from babel import Locale

from atoll.tasks.generated import dates, sql, support
from atoll.tasks.generated.partition import NUM_ROWS, Split
from atoll.tasks.generated.sql_tables import NUM_DATABASES, NUM_TABLE_ROWS, TABLES
from atoll.tasks.generated.support_phrases import CLOSINGS, OPENINGS, PHRASES
from atoll.tasks.sql_execution import run_query, same_result

Rows = list[dict[str, str]]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
GENERATORS: dict[str, Callable[[Split, int], Rows]] = {"dates": dates.rows, "sql": sql.rows, "support": support.rows}
COLUMNS = {
    "dates": ["date", "iso"],
    "sql": ["schema", "question", "query"],
    "support": ["message", "queue"],
}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_complete_and_seeded(name: str, split: Split) -> None:
    found = GENERATORS[name](split, 0)
    assert len(found) == NUM_ROWS[split]
    assert all(list(row) == COLUMNS[name] and all(row.values()) for row in found)
    assert found == GENERATORS[name](split, 0)
    assert found != GENERATORS[name](split, 1)


@pytest.mark.parametrize("name", GENERATORS)
def test_rows_do_not_depend_on_the_process(name: str) -> None:
    code = f"from atoll.tasks.generated import {name} as task; print(task.rows('test', 0)[:3])"
    fresh = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    assert fresh.stdout.strip() == str(GENERATORS[name]("test", 0)[:3])


def facts(name: str, rows: Rows) -> set[str]:
    """What must not be shared between splits: the day, the query, the trouble."""
    if name == "support":
        return {trouble_of(row["message"]) for row in rows}
    return {row["iso" if name == "dates" else "query"] for row in rows}


def trouble_of(message: str) -> str:
    opening = max((text for text in OPENINGS if message.startswith(text)), key=len)
    closing = max((text for text in CLOSINGS if message.endswith(text)), key=len)
    trouble = message[len(opening) : len(message) - len(closing)].strip()
    return trouble[0].upper() + trouble[1:]


@pytest.mark.parametrize("name", GENERATORS)
def test_splits_share_no_fact_even_across_seeds(name: str) -> None:
    by_split = [facts(name, GENERATORS[name](split, 0) + GENERATORS[name](split, 1)) for split in SPLITS]
    union = set().union(*by_split)
    assert len(union) == sum(len(part) for part in by_split)


@pytest.mark.parametrize("name", GENERATORS)
def test_no_input_has_two_answers(name: str) -> None:
    answers = defaultdict(set)
    for split in SPLITS:
        for row in GENERATORS[name](split, 0):
            *inputs, target = row.values()
            answers[tuple(inputs)].add(target)
    assert all(len(targets) == 1 for targets in answers.values())


def test_dates_state_day_month_and_year() -> None:
    languages = Counter(Locale.parse(locale).language for locale, _ in dates.written_forms())
    assert len(languages) >= 12
    for row in dates.rows("test"):
        day = datetime.date.fromisoformat(row["iso"])
        numbers = [int(number) for number in re.findall(r"\d+", row["date"])]
        expected = [day.month] if "月" in row["date"] else []
        assert sorted(numbers) == sorted([day.year, day.day, *expected])


def test_dates_are_unambiguous_across_languages() -> None:
    """No month's name in one form is another month's name in any other form."""
    months = defaultdict(set)
    for locale, pattern in dates.written_forms():
        if re.search("[Ec月]", pattern) is None:  # forms with a weekday name the month as the others do
            for month in range(1, 13):
                text = dates.write_date(datetime.date(2001, month, 11), locale, pattern)
                name = max(re.findall(r"[^\W\d]+", text.casefold()), key=len)
                months[name].add(month)
    assert len(months) > 150
    assert {name: found for name, found in months.items() if len(found) > 1} == {}


def test_every_language_names_the_same_day() -> None:
    day = datetime.date(1987, 3, 14)
    written = {dates.write_date(day, *form) for form in dates.written_forms()}
    assert {"March 14, 1987", "14. März 1987", "14 de marzo de 1987", "1987年3月14日", "14 Mart 1987"} <= written


def test_sql_references_run_and_show_their_columns() -> None:
    for row in sql.rows("test"):
        assert same_result(row["query"], row["query"])
        used = set(re.findall(r"[a-z]+", re.sub(r"'[^']*'", "", row["query"])))
        table, columns = re.fullmatch(r"(\w+)\((.*)\)", row["schema"]).groups()  # type: ignore[union-attr]
        assert used <= {table, *columns.split(", ")}


@pytest.mark.parametrize(
    ("old", "new"),
    [(r" WHERE .*?(?= GROUP| ORDER|$)", ""), (" AND .*?(?= GROUP| ORDER|$)", ""), ("AVG", "SUM"), ("DESC", "ASC"),
     (r" > ", " >= "), (r"'(\w+)'", "'x'"), (r"SELECT \w+ ", "SELECT 1 ")],
)  # fmt: skip
def test_sql_databases_tell_wrong_queries_from_right_ones(old: str, new: str) -> None:
    pairs = [(re.sub(old, new, row["query"]), row["query"]) for row in sql.rows("test")]
    changed = [pair for pair in pairs if pair[0] != pair[1]]
    mistaken = [pair for pair in changed if same_result(*pair)]
    assert len(changed) >= 10
    assert len(mistaken) <= 0.15 * len(changed)


def test_sql_tables_have_unique_keys_and_numbers_and_all_values() -> None:
    for table in TABLES:
        for seed in range(NUM_DATABASES):
            columns = list(zip(*run_query(f"SELECT * FROM {table.name}", seed), strict=True))
            key, first, second, *numbers = map(set, columns)
            assert [len(key), *map(len, numbers)] == [NUM_TABLE_ROWS] * 3
            assert [first, second] == [set(category.values) for category in table.categories]


def test_support_is_balanced_and_its_phrases_name_one_queue_each() -> None:
    counts = Counter(row["queue"] for row in support.rows("test"))
    assert set(counts) == set(support.QUEUES)
    assert max(counts.values()) - min(counts.values()) <= 1
    troubles = Counter(trouble for _, phrases in PHRASES.values() for trouble in phrases)
    assert set(troubles.values()) == {1}
    assert all(trouble.count("{}") == 1 for trouble in troubles)
