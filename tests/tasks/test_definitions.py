"""The task files that ship with Atoll: they load, fit their data, and ask for metrics that exist."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest

from atoll.config.task import SourceConfig, TaskConfig
from atoll.tasks.dataset import load_split
from atoll.tasks.metrics import METRICS, find_metric
from atoll.tasks.task import builtin_tasks, find_task

LORA_LAND = ["conllpp", "covid", "e2e_nlg", "glue_sst2", "legal", "viggo"]
DEMO = ["dates", "sql", "support"]


def test_the_built_in_tasks_are_these() -> None:
    assert sorted(builtin_tasks()) == sorted(LORA_LAND + DEMO)


@pytest.mark.parametrize("name", LORA_LAND + DEMO)
def test_a_definition_is_complete(name: str) -> None:
    task = find_task(name)
    assert task.name == name
    assert task.description
    assert task.licence
    assert task.dataset.train is not None
    assert task.dataset.test is not None
    assert task.example is not None
    assert set(task.input_columns) == set(task.prompt.columns)


@pytest.mark.parametrize("name", LORA_LAND + DEMO)
def test_the_worked_example_scores_full_marks(name: str) -> None:
    task = find_task(name)
    assert task.example is not None
    target = task.example.target
    assert [find_metric(metric).score([(target, target)]) for metric in task.metrics] == [1] * len(task.metrics)


@pytest.mark.parametrize("name", LORA_LAND)
def test_published_scores_can_be_compared(name: str) -> None:
    task = find_task(name)
    assert task.published is not None
    assert task.published.metric == task.metrics[0]
    assert task.published.mistral_7b is not None
    assert task.published.gpt_4 is not None
    assert 0 < task.published.gpt_4 < task.published.mistral_7b < 1
    assert "2405.00732" in task.published.source


@pytest.mark.parametrize("name", DEMO)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_demo_tasks_load_without_files(name: str, split: str) -> None:
    task = find_task(name)
    examples = load_split(task, split, limit=20)  # type: ignore[arg-type]
    assert len(examples) == 20
    check_rows(task, [example.row for example in examples])


@pytest.mark.parametrize("name", LORA_LAND)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_definitions_fit_the_data(name: str, split: str, loraland: Path) -> None:
    task = find_task(name)
    examples = load_split(task, split, data_root=loraland, limit=500)  # type: ignore[arg-type]
    check_rows(task, [example.row for example in examples])
    if task.labels is not None:
        assert {example.row[task.target_column] for example in examples} == set(task.labels)


def check_rows(task: TaskConfig, rows: list[dict[str, str]]) -> None:
    for row in rows:
        assert all(row[column] for column in (*task.input_columns, task.target_column))
        target = row[task.target_column]
        metric = METRICS[task.metrics[0]]
        assert metric.score([(target, target)]) == 1
        assert metric.score([("", target)]) == 0


def test_conllpp_query_writes_tags_as_json(tmp_path: Path) -> None:
    """The hub's rows, as far as they are known, become the rows of LoRA Land."""
    file = tmp_path / "train.parquet"
    sentences = [
        (["Ann", "Lee", "left", "Le", '"J', "for", "Oslo", "Rome", "."], [1, 2, 0, 3, 4, 0, 5, 5, 0]),
        (["1996-12-06"], [0]),
        (["French", "French", "Union"], [7, 7, 8]),
    ]
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE sentences (id BIGINT, tokens VARCHAR[], ner_tags BIGINT[])")
        connection.executemany("INSERT INTO sentences VALUES (0, ?, ?)", sentences)
        connection.execute(f"COPY sentences TO '{file}' (FORMAT parquet)")
    task = find_task("conllpp")
    assert task.dataset.train is not None
    source = SourceConfig(path=str(file), sql=task.dataset.train.sql)
    task = task.model_copy(update={"dataset": task.dataset.model_copy(update={"test": source})})
    found = {example.row["input"]: example.row["output"] for example in load_split(task, "test")}
    empty = {"person": [], "organization": [], "location": [], "miscellaneous": []}
    assert found == {
        'Ann Lee left Le "J for Oslo Rome .': json.dumps(
            empty | {"person": ["Ann Lee"], "organization": ['Le "J'], "location": ["Oslo", "Rome"]}
        ),
        "1996-12-06": json.dumps(empty),
        "French French Union": json.dumps(empty | {"miscellaneous": ["French", "French Union"]}),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", LORA_LAND + DEMO)
def test_answers_have_room(name: str, loraland: Path) -> None:
    """999 targets of 1,000 fit into max_new_tokens with the end token, in the default base's tokens."""
    from transformers import AutoTokenizer

    from atoll.model.source import resolve_base

    tokenizer = AutoTokenizer.from_pretrained(resolve_base("smollm2-135m-instruct").folder)
    task = find_task(name)
    rows = [example.row for split in ("train", "test") for example in load_split(task, split, data_root=loraland)]  # type: ignore[arg-type]
    encoded = tokenizer([row[task.target_column] for row in rows], add_special_tokens=False)["input_ids"]
    too_long = [ids for ids in encoded if len(ids) + 1 > task.generation.max_new_tokens]
    assert len(too_long) <= len(rows) / 1_000
