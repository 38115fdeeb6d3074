"""A first task from a file: the answer, what is read, how it is scored, how the rows are divided."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.config.load import load_task_text
from atoll.config.task import TaskConfig
from atoll.config.yaml_text import to_yaml
from atoll.errors import AtollError, DataError, UsageError
from atoll.tasks.dataset import SPLITS, has_split, load_split
from atoll.tasks.guess import Guess, guess_task

Rows = list[dict[str, Any]]


def write(folder: Path, rows: Rows, name: str) -> Path:
    path = folder / name
    if name.endswith(".csv"):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(text.getvalue(), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def guess(folder: Path, rows: Rows, name: str = "d.csv", **known: Any) -> Guess:
    return guess_task(write(folder, rows, name), "d", source=name, **known)


def guessed_task(folder: Path, rows: Rows, name: str = "d.csv") -> TaskConfig:
    return load_task_text(to_yaml(guess(folder, rows, name).task), "d.yaml", folder=folder)


def tickets(number: int = 60) -> Rows:
    return [
        {"ticket_id": n, "message": f"message {n} says a thing", "lang": "en", "team": ("net", "desk", "apps")[n % 3]}
        for n in range(number)
    ]


def test_labels_are_found_and_ids_and_constants_are_not_read(tmp_path: Path) -> None:
    task = guess(tmp_path, tickets()).task
    assert task["target_column"] == "team"
    assert task["input_columns"] == ["message"]
    assert task["labels"] == ["apps", "desk", "net"]
    assert task["metrics"] == ["accuracy", "label_match"]


def test_the_guess_is_a_task_whose_splits_share_no_input(tmp_path: Path) -> None:
    task = guessed_task(tmp_path, [*tickets(), *tickets(20)])
    messages = {split: {example.row["message"] for example in load_split(task, split)} for split in SPLITS}
    assert {split: len(found) for split, found in messages.items()} == {"train": 48, "validation": 6, "test": 6}
    assert len(set().union(*messages.values())) == 60


@pytest.mark.parametrize(
    ("answer", "metrics"),
    [
        (lambda n: f"SELECT a FROM t WHERE b = {n}", ["sql_canonical", "exact_match"]),
        (lambda n: json.dumps({"a": n}), ["exact_match", "rouge_l"]),
        (lambda n: str(n * 7), ["exact_match", "spearman"]),
        (lambda n: f"answer {n}", ["accuracy", "rouge_l"]),
        (lambda n: f"a long answer with number {n} in it " * 4, ["rouge_l", "chrf"]),
    ],
)
def test_the_form_of_the_answers_decides_the_metrics(tmp_path: Path, answer: Any, metrics: list[str]) -> None:
    task = guess(tmp_path, [{"q": f"question {n}", "answer": answer(n)} for n in range(40)]).task
    assert task["metrics"] == metrics
    assert "labels" not in task


def test_a_column_that_says_the_split_is_followed(tmp_path: Path) -> None:
    rows = [row | {"split": ("train", "train", "Dev", "test")[n % 4]} for n, row in enumerate(tickets(40))]
    task = guessed_task(tmp_path, rows)
    assert [len(load_split(task, split)) for split in SPLITS] == [20, 10, 10]


def test_rows_without_an_answer_are_left_out_and_told(tmp_path: Path) -> None:
    rows = tickets()
    rows[5]["team"] = rows[6]["team"] = " "
    assert "2 answers" in guess(tmp_path, rows).reasons["dataset"]
    task = guessed_task(tmp_path, rows)
    assert sum(len(load_split(task, split)) for split in SPLITS) == 58


def test_missing_values_of_jsonl_are_left_out(tmp_path: Path) -> None:
    rows = tickets()
    rows[5]["message"] = rows[6]["team"] = None
    task = guessed_task(tmp_path, rows, "d.jsonl")
    assert sum(len(load_split(task, split)) for split in SPLITS) == 58


def test_what_is_known_is_not_guessed(tmp_path: Path) -> None:
    task = guess(tmp_path, tickets(), target="message", inputs=["team", "lang"]).task
    assert (task["target_column"], task["input_columns"]) == ("message", ["team", "lang"])


def test_a_person_decides_where_no_name_says_it(tmp_path: Path) -> None:
    rows = [{"first": f"f {n}", "second": f"s {n}"} for n in range(20)]
    asked: list[Any] = []

    def ask(columns: Any, default: str) -> str:
        asked.append((list(columns), default))
        return "first"

    assert guess(tmp_path, rows, ask_target=ask).task["target_column"] == "first"
    assert asked == [(["first", "second"], "second")]
    assert guess(tmp_path, rows).task["target_column"] == "second"


@pytest.mark.parametrize(
    ("rows", "known", "error", "message"),
    [
        (tickets(5), {}, DataError, "the file has 5 rows"),
        ([{"a": str(n)} for n in range(20)], {}, DataError, "one column"),
        (tickets(), {"target": "teem"}, UsageError, "no column `teem`"),
        (tickets(), {"target": "team", "inputs": ["team"]}, UsageError, "named twice"),
        ([{"a{b": str(n), "label": "x"} for n in range(20)], {}, DataError, "no column is left"),
    ],
)
def test_a_file_that_makes_no_task_is_refused(
    tmp_path: Path, rows: Rows, known: dict[str, Any], error: type[AtollError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        guess(tmp_path, rows, **known)
    assert caught.value.mend


NAMES = st.sampled_from(["label", "text", "id", "split", "a b", 'quo"te', "x{y", " z", "é", "", "0", "Answer", "null"])
CELLS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just([1, "a"])


@given(st.lists(st.dictionaries(NAMES, CELLS, min_size=1, max_size=5), min_size=8, max_size=30))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_file_makes_a_task_that_can_be_read_or_is_refused(tmp_path: Path, rows: Rows) -> None:
    try:
        task = guessed_task(tmp_path, rows, "d.jsonl")
        for split in SPLITS:
            if has_split(task, split):
                load_split(task, split)
    except AtollError as error:
        message = str(error)
    else:
        message = ""
    # A few rows may leave a split without any; everything else was looked at before.
    assert "labels" not in message
