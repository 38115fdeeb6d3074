"""Metrics against hand-made cases, against rouge-score on real data, and LoRA Land's known faults."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from atoll.errors import ConfigError, DataError
from atoll.tasks.metrics import METRICS, find_metric
from atoll.tasks.sql_execution import MAX_ROWS, QueryError, run_query


def points(metric: str, prediction: str, reference: str) -> float:
    return METRICS[metric].score([(prediction, reference)])


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("Positive", "Positive", 1),
        ("  positive.\n", "Positive", 1),
        ('"Extremely  Positive"', "Extremely Positive", 1),
        ("Ｐositive", "Positive", 1),  # a full-width letter
        ("Extremely Positive", "Positive", 0),
        ("The answer is Positive", "Positive", 0),
        ("-1", "1", 0),
        ("1.0", "1", 0),
        ("", "1", 0),
        ("", ".", 0),
        (".", ".", 1),
    ],
)
def test_accuracy_folds_form_and_nothing_else(prediction: str, reference: str, expected: float) -> None:
    assert points("accuracy", prediction, reference) == expected


@pytest.mark.parametrize(
    ("prediction", "expected"), [("1987-03-14\n", 1), ("1987-03-14.", 0), ("1987-3-14", 0), ("", 0)]
)
def test_exact_match_forgives_only_outer_white_space(prediction: str, expected: float) -> None:
    assert points("exact_match", prediction, "1987-03-14") == expected


def test_mean_is_over_examples() -> None:
    assert METRICS["accuracy"].score([("a", "a"), ("b", "a"), ("a", "a"), ("", "a")]) == 0.5


def test_rouge_l_by_hand() -> None:
    # common subsequence "the cat the mat": 4 of 5 and of 6 words
    assert points("rouge_l", "the cat near the mat", "The cat sat on the mat.") == pytest.approx(8 / 11)
    assert points("rouge_l", "", "The cat") == 0
    assert points("rouge_l", "...", "...") == 0  # no words: as rouge-score and torchmetrics


@pytest.mark.parametrize(
    ("task", "target"), [("viggo", "target"), ("e2e_nlg", "human_reference"), ("conllpp", "output")]
)
def test_rouge_l_equals_rouge_score_on_real_targets(loraland: Path, task: str, target: str) -> None:
    with gzip.open(loraland / task / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        targets = [json.loads(line)[target] for line in file][:200]
    oracle = RougeScorer(["rougeL"])
    pairs = list(zip(targets, targets[1:] + targets[:1], strict=True))
    for prediction, reference in pairs:
        expected = oracle.score(reference, prediction)["rougeL"].fmeasure
        assert points("rouge_l", prediction, reference) == pytest.approx(expected, abs=1e-12)


GOLD = '{"person": ["Ann Lee"], "organization": [], "location": ["Oslo", "Oslo"], "miscellaneous": []}'


@pytest.mark.parametrize(
    ("prediction", "stats"),
    [
        (GOLD, (3, 0, 0)),
        ('Sure!\n```json\n{"person": ["Ann  Lee"],\n "location": ["Oslo"]}\n```', (2, 0, 1)),
        ("{'Person': ['Ann Lee'], 'location': ('Oslo', 'Oslo')}", (3, 0, 0)),
        ('{"person": "Ann Lee", "location": ["Oslo", "Oslo", "Oslo"]}', (3, 1, 0)),
        ('{"organization": ["Ann Lee"]}', (0, 1, 3)),
        ('{"person": ["Ann Lee"], "location": ["Os', (0, 1, 3)),
        ("Ann Lee flew to Oslo.", (0, 1, 3)),
        ("", (0, 1, 3)),
        ("[" * 5_000 + "{}", (0, 0, 3)),
        ("{" * 5_000 + "}" * 5_000, (0, 1, 3)),
    ],
)
def test_entity_f1_counts(prediction: str, stats: tuple[int, int, int]) -> None:
    assert METRICS["entity_f1"].stats(prediction, GOLD) == stats


def test_entity_f1_is_micro_averaged() -> None:
    nothing = '{"person": []}'
    metric = METRICS["entity_f1"]
    assert metric.score([(nothing, nothing)]) == 1
    assert metric.score([("no JSON", nothing)]) == 0
    assert metric.score([(GOLD, GOLD), (nothing, nothing), ("{}", GOLD)]) == pytest.approx(6 / 9)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("positive", "1", 1),
        ("No, it is not.", "0", 1),
        ("0 (not 1)", "1", 1),  # finds the 1 first
        ("0 (not 1)", "0", 0),
        ("unknown", "0", 1),  # finds `no` in it
        ("maybe", "0", 0),
    ],
)
def test_published_accuracy_repeats_the_faults(prediction: str, reference: str, expected: float) -> None:
    assert points("accuracy_flex_as_published", prediction, reference) == expected


QUERY = "SELECT name FROM players WHERE team = 'Bears' AND age > 30"


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (QUERY, 1),
        ("```sql\nselect NAME from players where age > 30 and team = 'Bears';\n```", 1),
        ("SELECT p.name FROM players p WHERE 30 < p.age AND team LIKE 'Bears' ORDER BY age", 1),
        (QUERY.replace(">", ">="), 0),
        (QUERY.replace("30", "29"), 0),
        (QUERY.replace("name", "country", 1), 0),
        (QUERY.replace("AND", "OR"), 0),
        (QUERY + " LIMIT 1", 0),
        ("SELECT name FROM player", 0),
        ("Here is the query: " + QUERY, 0),
        ("", 0),
        ("-- nothing", 0),
    ],
)
def test_sql_execution_compares_rows(prediction: str, expected: float) -> None:
    assert points("sql_execution", prediction, QUERY) == expected


def test_sql_execution_holds_to_an_order_that_the_reference_asks_for() -> None:
    reference = "SELECT title FROM books ORDER BY price DESC LIMIT 3"
    assert points("sql_execution", reference, reference) == 1
    assert points("sql_execution", f"SELECT * FROM ({reference}) ORDER BY 1", reference) == 0


def test_sql_execution_wants_a_reference_that_runs() -> None:
    with pytest.raises(DataError, match="cannot be run"):
        points("sql_execution", QUERY, "SELECT name FROM no_such_table")


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM players",
        "UPDATE players SET age = 1",
        "DROP TABLE players",
        "CREATE TABLE t (x)",
        "PRAGMA table_info(players)",
        "ATTACH '{file}' AS other",
        "VACUUM INTO '{file}'",
        "SELECT load_extension('{file}')",
        "SELECT writefile('{file}', 'x')",
        "SELECT 1; SELECT 2",
        "SELECT zeroblob(1000000000)",
        "SELECT randomblob(10)",
        "SELECT printf('%.*c', 100000000, 'x')",
        "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t) SELECT COUNT(*) FROM t",
        "SELECT COUNT(*) FROM players, books, cars, songs, movies",
        "SELECT a.name FROM players a, players b",
        "SELECT '" + "x" * 10_000 + "'",
        "SELECT " + "(" * 200 + "1" + ")" * 200,
        "SELECT replace(hex(name), '4', name) FROM players",
        "SELECT\0 1",
        "SELECT '\ud800'",
    ],
)
def test_queries_may_only_read_and_only_little(query: str, tmp_path: Path) -> None:
    with pytest.raises(QueryError):
        run_query(query.replace("{file}", str(tmp_path / "file")))
    assert not list(tmp_path.iterdir())


def test_a_query_leaves_the_next_one_its_tables() -> None:
    with pytest.raises(QueryError):
        run_query("DROP TABLE players")
    assert run_query("SELECT COUNT(*) FROM players") == [(36.0,)]
    assert len(run_query("SELECT 1 FROM players, (SELECT 1 FROM cars LIMIT 20)")) == 720 <= MAX_ROWS


def test_every_metric_says_where_it_comes_from() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.source


def test_an_unknown_metric_is_refused_with_a_suggestion() -> None:
    assert find_metric("rouge_l") is METRICS["rouge_l"]
    with pytest.raises(ConfigError) as caught:
        find_metric("rougel", where="task.yaml:3:1")
    assert caught.value.mend is not None
    assert "rouge_l" in caught.value.mend
    assert caught.value.where == "task.yaml:3:1"
    with pytest.raises(ConfigError, match="zzz") as caught:
        find_metric("zzz")
    assert "accuracy" in str(caught.value)
