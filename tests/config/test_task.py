"""What a task file means."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.config.load import load_task, load_task_text
from atoll.config.task import SourceConfig, TaskConfig
from atoll.config.template import TemplatePart, parse_template, template_columns

TASK = """\
name: tickets
category: support
dataset:
  train: data/train-*.csv
  validation: {path: hf://datasets/org/name/valid.parquet, sql: select * from data where ok}
  test: {path: /abs/test.jsonl.gz}
prompt:
  template: |
    Reply with {{"queue": ...}}.
    {subject}: {text} {subject}
  system: You sort messages.
target_column: queue
labels: [yes, no, "0"]
metrics: [accuracy]
generation: {max_new_tokens: 8, stop: ["\\n"]}
example: {inputs: {subject: Bill, text: wrong sum}, target: no}
"""


def test_a_whole_task(tmp_path: Path) -> None:
    path = tmp_path / "tickets.yaml"
    path.write_text(TASK)
    task = load_task(path)
    assert task.input_columns == ("subject", "text")
    assert task.dataset.train == SourceConfig(path=str(tmp_path / "data" / "train-*.csv"))
    assert task.dataset.validation is not None
    assert task.dataset.validation.path == "hf://datasets/org/name/valid.parquet"
    assert task.dataset.validation.sql == "select * from data where ok"
    assert task.dataset.test == SourceConfig(path="/abs/test.jsonl.gz")
    # YAML 1.2: these words are text.
    assert task.labels == ("yes", "no", "0")
    assert task.generation.stop == ("\n",)
    assert task.prompt.chat_template is None
    assert TaskConfig.model_validate_json(task.model_dump_json()) == task


def test_text_without_a_folder_keeps_its_paths() -> None:
    task = load_task_text(TASK, "tickets.yaml")
    assert task.dataset.train == SourceConfig(path="data/train-*.csv")


def test_a_generated_source() -> None:
    text = "name: d\ndataset: {train: {generated: dates}}\nprompt: {template: '{text}'}\n"
    task = load_task_text(text + "target_column: iso\nmetrics: [exact_match]\n", "d.yaml")
    assert task.dataset.train == SourceConfig(generated="dates")
    assert task.dataset.test is None


@pytest.mark.parametrize(
    ("scalar", "value"),
    [("1e-3", 1e-3), ("0.5", 0.5), (".5", 0.5), ("1", 1.0), ("0x10", 16.0), ("0o17", 15.0), ("012", 12.0)],
)
def test_numbers_follow_yaml_1_2(scalar: str, value: float) -> None:
    task = load_task_text(TASK.replace("max_new_tokens: 8", f"temperature: {scalar}"), "tickets.yaml")
    assert task.generation.temperature == value


def test_template_parts() -> None:
    assert parse_template("a {{{x y}}} {x y}{z}") == (
        TemplatePart("a {", is_column=False),
        TemplatePart("x y", is_column=True),
        TemplatePart("} ", is_column=False),
        TemplatePart("x y", is_column=True),
        TemplatePart("z", is_column=True),
    )
    assert template_columns("{b} {a} {b}") == ("b", "a")
    assert parse_template("{{{{}}") == (TemplatePart("{{}", is_column=False),)
