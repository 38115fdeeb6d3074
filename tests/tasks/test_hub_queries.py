"""The queries of the task files turn rows of the hub's shape into the columns that the tasks name.

The hub's files cannot be read here: the rows are made by hand after their documented columns and types.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atoll.config.task import SourceConfig
from atoll.tasks.dataset import load_split
from atoll.tasks.task import builtin_tasks, find_task

EMPTY = {"person": [], "organization": [], "location": [], "miscellaneous": []}
WIKISQL_TABLE = {"header": ["Pick #", "Home Town", "Year"], "rows": [["1", "Oslo", "1990"]], "name": "table_1"}


def conds(*parts: tuple[int, int, str]) -> dict[str, Any]:
    columns, operators, values = zip(*parts, strict=True) if parts else ((), (), ())
    return {"column_index": list(columns), "operator_index": list(operators), "condition": list(values)}


# task -> (rows as the hub has them, rows as the task wants them)
CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, str]]]] = {
    "arc_combined": (
        [
            {"question": "Q?", "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, "answerKey": "C"},
            {"question": "R?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        ],
        [
            {"question": "Q?", "choices_text": "A: x\nB: y\nC: z", "answerKey": "C"},
            {"question": "R?", "choices_text": "A: x\nB: y", "answerKey": "B"},
        ],
    ),
    "bc5cdr": (
        [
            {"tokens": ["Tom's", "chest", "pain", "after", "salicylic", "acid"], "tags": [0, 2, 3, 0, 1, 4]},
            {"tokens": ["5'-FU"], "tags": [1]},
        ],
        [
            {
                "tokens_concatenated": "Tom's chest pain after salicylic acid",
                "collected_tags": str(
                    {"B-Chemical": ["salicylic"], "B-Disease": ["chest"], "I-Disease": ["pain"], "I-Chemical": ["acid"]}
                ),
            },
            {
                "tokens_concatenated": "5'-FU",
                "collected_tags": str({"B-Chemical": ["5'-FU"], "B-Disease": [], "I-Disease": [], "I-Chemical": []}),
            },
        ],
    ),
    "boolq": (
        [
            {"question": "is it", "answer": True, "passage": "P"},
            {"question": "was it", "answer": False, "passage": "P"},
        ],
        [
            {"question": "is it", "answer": "yes", "passage": "P"},
            {"question": "was it", "answer": "no", "passage": "P"},
        ],
    ),
    "code_alpaca": (
        [{"prompt": "def f():", "canonical_solution": "    pass", "test": "t", "entry_point": "f"}],
        [{"problem": "def f():", "solution": "    pass"}],
    ),
    "conllpp": (
        [
            {
                "id": 0,
                "tokens": ["Ann", "Lee", "left", "Le", '"J', "for", "Oslo", "Rome", "."],
                "ner_tags": [1, 2, 0, 3, 4, 0, 5, 5, 0],
            },
            {"id": 0, "tokens": ["1996-12-06"], "ner_tags": [0]},
            {"id": 0, "tokens": ["French", "French", "Union"], "ner_tags": [7, 7, 8]},
        ],
        [
            {
                "input": 'Ann Lee left Le "J for Oslo Rome .',
                "output": json.dumps(
                    EMPTY | {"person": ["Ann Lee"], "organization": ['Le "J'], "location": ["Oslo", "Rome"]}
                ),
            },
            {"input": "1996-12-06", "output": json.dumps(EMPTY)},
            {
                "input": "French French Union",
                "output": json.dumps(EMPTY | {"miscellaneous": ["French", "French Union"]}),
            },
        ],
    ),
    "dbpedia": (
        [{"label": 0, "title": "T", "content": "a"}, {"label": 13, "title": "T", "content": "b"}],
        [{"content": "a", "label": "Company"}, {"content": "b", "label": "WrittenWork"}],
    ),
    "drop": (
        [
            {"passage": "P", "question": "Q", "answers_spans": {"spans": ["7", "seven"], "types": ["number", "span"]}},
            {"passage": "P", "question": "no answer", "answers_spans": {"spans": [], "types": []}},
        ],
        [{"passage": "P", "question": "Q", "answer": "7"}],
    ),
    "glue_stsb": (
        [{"sentence1": "a", "sentence2": "b", "label": 3.799999952316284, "idx": 0}],
        [{"sentence1": "a", "sentence2": "b", "label": "3.8"}],
    ),
    "hellaswag": (
        [{"activity_label": "Tea", "ctx": "She", "endings": ["a", "b", "c", "d"], "label": "2"}],
        [{"ctx": "Tea: She", "endings_text": "0: a\n1: b\n2: c\n3: d", "label": "2"}],
    ),
    "hellaswag_processed": (
        [{"activity_label": "Tea", "ctx": "She", "endings": ["a", "b", "c", "d"], "label": "2"}],
        [{"ctx": "Tea: She", "correct_ending": "c"}],
    ),
    "magicoder": (
        [{"prompt": "def f():", "canonical_solution": "    pass", "test": "t", "entry_point": "f"}],
        [{"problem": "def f():", "lang": "python", "solution": "    pass"}],
    ),
    "mmlu": (
        [{"question": "Q", "subject": "law", "choices": ["a", "b", "c", "d"], "answer": 3}],
        [{"question": "Q", "choices_text": "0: a\n1: b\n2: c\n3: d", "answer": "3"}],
    ),
    "reuters": (
        [
            {"title": "T", "text": "X", "topics": ["grain", "wheat"]},
            {"title": "T", "text": "Y", "topics": []},
            {"title": "", "text": "Z", "topics": ["earn"]},
        ],
        [{"title": "T", "text": "X", "topics": "grain, wheat"}],
    ),
    "webnlg": (
        [
            {"input": ["A | b | C", "A | d | E"], "target": "one", "references": ["one", "two"]},
            {"input": ["A | b | C"], "target": "three", "references": []},
        ],
        [
            {"modified_triple_set_preprocessed": "A | b | C ; A | d | E", "lex_preprocessed": "one"},
            {"modified_triple_set_preprocessed": "A | b | C", "lex_preprocessed": "three"},
        ],
    ),
    "wikisql": (
        [
            {
                "question": "Which?",
                "table": WIKISQL_TABLE,
                "sql": {"sel": 0, "agg": 3, "conds": conds((1, 0, "Oslo"), (2, 1, "1990"))},
            },
            {"question": "All?", "table": WIKISQL_TABLE, "sql": {"sel": 1, "agg": 0, "conds": conds()}},
        ],
        [
            {
                "table": "pick # | home town | year",
                "question": "Which?",
                "sql": "SELECT COUNT pick # FROM table WHERE home town = oslo AND year > 1990",
            },
            {"table": "pick # | home town | year", "question": "All?", "sql": "SELECT home town FROM table"},
        ],
    ),
}  # fmt: skip


def rows_through(name: str, rows: list[dict[str, Any]], folder: Path, split: str = "test") -> list[Any]:
    """The task's examples when the hub's file of a split holds these rows."""
    file = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    task = find_task(name)
    source = SourceConfig(path=str(file), sql=getattr(task.dataset, split).sql)
    dataset = task.dataset.model_copy(update={"test": source})
    return load_split(task.model_copy(update={"dataset": dataset}), "test", for_scoring=split == "test")


def test_every_query_has_a_case() -> None:
    queried = {name for name in builtin_tasks() if (test := find_task(name).dataset.test) is not None and test.sql}
    assert queried == CASES.keys()


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_query_gives_the_columns_of_its_task(name: str, tmp_path: Path) -> None:
    rows, expected = CASES[name]
    found = [example.row for example in rows_through(name, rows, tmp_path)]
    assert sorted(found, key=repr) == sorted(expected, key=repr)


def test_train_and_test_have_one_query_but_for_code() -> None:
    for name in CASES:
        dataset = find_task(name).dataset
        assert dataset.train is not None
        assert dataset.test is not None
        if name not in ("code_alpaca", "magicoder"):
            assert dataset.train.sql == dataset.test.sql


def test_the_columns_for_scoring_come_through(tmp_path: Path) -> None:
    [example] = rows_through("drop", CASES["drop"][0], tmp_path)
    assert json.loads(example.columns["answers"]) == ["7", "seven"]
    references = [json.loads(e.columns["references"]) for e in rows_through("webnlg", CASES["webnlg"][0], tmp_path)]
    assert sorted(references) == [["one", "two"], ["three"]]
    [example] = rows_through("code_alpaca", CASES["code_alpaca"][0], tmp_path)
    assert example.columns == {"problem": "def f():", "entry_point": "f", "test": "t"}


def test_code_alpaca_joins_instruction_and_input(tmp_path: Path) -> None:
    solution = "print(sorted([3, 1, 2]))"
    rows = [
        {"instruction": "Sort it.", "input": "[3, 1, 2]", "output": solution},
        {"instruction": "Sort these numbers.", "input": "", "output": solution},
        {"instruction": "Too short.", "input": "", "output": "x"},
    ]
    found = {example.row["problem"] for example in rows_through("code_alpaca", rows, tmp_path, split="train")}
    assert found == {"Sort it.\n\nInput:\n[3, 1, 2]", "Sort these numbers."}
