"""Wrong files: each error names its line and column and says how to mend it."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.config.load import load_fleet, load_task, load_task_text
from atoll.errors import ConfigError

FLEET_CASES = {
    "misspelt key": (
        "adapters:\n  a: {task: x}\ntrainer:\n  lerning_rate: 1e-3\n", "4:3", "did you mean `learning_rate`?"),
    "misspelt section": ("adaptors:\n  a: {task: x}\nadapters: {a: {task: x}}\n", "1:1", "did you mean `adapters`?"),
    "hopeless key": ("adapters: {a: {task: x}}\nquantization: {zzz: 1, bits: 4}\n", "2:16", "the keys here are `bits`"),
    "key of another section": (
        "adapters: {a: {task: x}}\nepochs: 3\n", "2:1", "`epochs` belongs in `trainer`"),
    "fleet-wide key in an adapter": (
        "adapters:\n  a: {task: x, trainer: {token_budget: 9}}\n", "2:26", "`token_budget` belongs in `trainer`"),
    "PEFT's name": ("adapters: {a: {task: x, adapter: {lora_alpha: 9}}}\n", "1:35", "it is called `alpha` here"),
    "TRL's name at the top": ("lr: 1\nadapters: {a: {task: x}}\n", "1:1", "`learning_rate` belongs in `trainer`"),
    "misspelt choice": (
        "adapters: {a: {task: x}}\ntrainer: {learning_rate_scheduler: cosin}\n", "2:36", "did you mean `cosine`?"),
    "choice in capitals": ("adapters: {a: {task: x}}\ndtype: FLOAT32\n", "2:8", "did you mean `float32`?"),
    "no such choice": ("adapters: {a: {task: x}}\nquantization:\n  bits: 3\n", "3:9", "use 4 or 8"),
    "quoted number": ("adapters: {a: {task: x}}\ntrainer: {epochs: '3'}\n", "2:19", "write it without quotes"),
    "fraction": ("adapters: {a: {task: x}}\ntrainer: {epochs: 1.5}\n", "2:19", "number, for example `epochs: 3`"),
    "true for a number": ("adapters: {a: {task: x, adapter: {r: true}}}\n", "1:38", "give a whole number"),
    "too high": ("adapters: {a: {task: x, adapter: {r: 999}}}\n", "1:38", "at most 256, for example `r: 16`"),
    "negative": ("adapters: {a: {task: x}}\ndata:\n  limit: -5\n", "3:10", "give a value above 0"),
    "infinite": ("adapters: {a: {task: x}}\ntrainer: {max_grad_norm: .inf}\n", "2:26", "give a finite number"),
    "overflowing": ("adapters: {a: {task: x}}\ntrainer: {max_grad_norm: 1e999}\n", "2:26", "give a finite number"),
    "endless digits": ("adapters: {a: {task: x}}\ndata: {limit: " + "9" * 5000 + "}\n", "2:15", "give a whole number"),
    "rate in words": ("adapters: {a: {task: x}}\ntrainer: {learning_rate: fast}\n", "2:26", "`learning_rate: 0.0002`"),
    "no modules": ("adapters: {a: {task: x}}\nadapter: {target_modules: []}\n", "2:27", "[q_proj, v_proj]"),
    "no adapters": ("adapters: {}\n", "1:11", "the adapters by name"),
    "adapters missing": ("# a comment\nbase_model: x\n", "2:1", "add `adapters: ...`"),
    "task missing": ("adapters:\n  a: {adapter: {r: 4}}\n", "2:3", "add `task: ...`"),
    "bad name": ("adapters:\n  My Tickets: {task: x}\n", "2:3", "for example `my-tickets`"),
    "short adapter": ("adapters:\n  a: glue_sst2\n", "2:6", "`{task: glue_sst2}`"),
    "empty section": ("adapters:\n  a: {task: x}\ntrainer:\n", "3:1", "or remove the key"),
    "adapters as a list": ("adapters:\n  - a\n", "2:3", "give a mapping"),
    "base as a number": ("base_model: 7\nadapters: {a: {task: x}}\n", "1:13", 'put it in quotes: "7"'),
    "duplicate key": ("adapters:\n  a: {task: x}\n  a: {task: y}\n", "3:3", "keep one of the two"),
    "missing task file": ("adapters:\n  a:\n    task: ./nowhere/x.yaml\n", "3:11", "check the path"),
}  # fmt: skip

TASK = """\
name: tickets
dataset: {train: train.csv}
prompt:
  template: "Queue of: {text}"
target_column: queue
metrics: [accuracy]
"""
TASK_CASES = {
    "no column in template": ("Queue of: {text}", "Queue?", "4:13", "name at least one input column"),
    "lone brace": ("Queue of: {text}", "a { b", "4:13", "a literal brace as {{ or }}"),
    "nameless field": ("Queue of: {text}", "{} b", "4:13", "write a column as {column}"),
    "unquoted template": ('"Queue of: {text}"', "{text}", "4:13", 'so write "{column}"'),
    "target in the prompt": ("{text}", "{text} {queue}", "5:16", "take it out of the prompt"),
    "unknown input column": ("target_column", "input_columns: [txt]\ntarget_column", "4:13", "use one of `txt`, or"),
    "one metric, no list": ("[accuracy]", "accuracy", "6:10", "write it as a list: [accuracy]"),
    "no metric": ("[accuracy]", "[]", "6:10", "give it a value"),
    "the same metric twice": ("[accuracy]", "[accuracy, accuracy]", "6:10", "remove one of the two"),
    "numbers as labels": ("metrics", "labels: [0, x]\nmetrics", "6:10", 'put it in quotes: "0"'),
    "no data": ("{train: train.csv}", "{}", "2:10", "add `train: your-file.csv`"),
    "dataset is a path": ("{train: train.csv}", "train.csv", "2:10", "write its keys below it"),
    "path and generator": ("train.csv", "{path: a, generated: sql}", "2:18", "write `path: data.csv`"),
    "query over generated rows": ("train.csv", "{generated: sql, sql: select 1}", "2:40", "remove `sql`"),
    "unknown generator": ("train.csv", "{generated: date}", "2:30", "did you mean `dates`?"),
    "worked example lacks a column": (
        "metrics", "example: {inputs: {}, target: x}\nmetrics", "6:19", "add `text: ...`"),
    "worked example with a strange label": (
        "metrics", "labels: [a, b]\nexample: {inputs: {text: t}, target: c}\nmetrics", "7:38", "use one of 'a', 'b'"),
    "negative tokens": ("metrics", "generation: {max_new_tokens: -1}\nmetrics", "6:30", "give a value above 0"),
    "empty stop string": ("metrics", "generation: {stop: ['']}\nmetrics", "6:21", "give it a value"),
}  # fmt: skip

SYNTAX_CASES = {
    "empty": ("", "1:1", "a task needs `name`"),
    "only a comment": ("# nothing\n", "1:1", "a task needs `name`"),
    "a list": ("- a\n", "1:1", "a task needs `name`"),
    "a sentence": ("\nhello there\n", "2:1", "a task needs `name`"),
    "tab": ("prompt:\n\ttemplate: x\n", "2:1", "indent with spaces"),
    "colon in a value": ("prompt:\n  template: Classify: x\n", "2:21", "put the value in quotes"),
    "text after a field": ("template: {text} is\n", "1:18", "put a value that begins with `{` in quotes"),
    "an at sign": ("name: @me\n", "1:7", "put the value in quotes"),
    "open bracket": ("metrics: [accuracy\nname: x\n", "2:5", "check the indentation, the quotes and the brackets"),
    "control character": ("name: a\x07\n", "1:8", "remove it"),
    "two documents": ("name: a\n---\nname: b\n", "2:1", "keep one document to a file"),
    "list as a key": ("? [a, b]\n: c\n", "1:3", "write `key: value`"),
    "escape of no character": ('name: "\\UFFFFFFFF"\n', "1:10", "check the escapes"),
    "half a surrogate pair": ('name: "\\ud800"\n', "1:7", "remove it"),
    "NUL": ('name: "a\\0"\n', "1:7", "remove it"),
    "alias of nothing": ("name: *x\n", "1:7", "write it out"),
    "alias of itself": ("name: &x [*x]\n", "1:11", "write it out"),
    "deep nesting": ("a: " + "[" * 50, "1:35", "no key needs more than a few levels"),
    "alias bomb": (
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)),
        "5:45",
        "use fewer aliases",
    ),
}


def check(error: ConfigError, file: str, place: str, mend: str) -> None:
    """One problem, at `place` of `file`, with `mend` in its advice."""
    assert error.where == f"{file}:{place}", error
    assert error.mend is not None
    assert mend in error.mend
    assert error.exit_code == 3


@pytest.mark.parametrize(("text", "place", "mend"), FLEET_CASES.values(), ids=FLEET_CASES)
def test_bad_fleet(tmp_path: Path, text: str, place: str, mend: str) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_fleet(path)
    check(caught.value, str(path), place, mend)


@pytest.mark.parametrize(("old", "new", "place", "mend"), TASK_CASES.values(), ids=TASK_CASES)
def test_bad_task(old: str, new: str, place: str, mend: str) -> None:
    assert old in TASK
    load_task_text(TASK, "t.yaml")
    with pytest.raises(ConfigError) as caught:
        load_task_text(TASK.replace(old, new, 1), "t.yaml")
    check(caught.value, "t.yaml", place, mend)


@pytest.mark.parametrize(("text", "place", "mend"), SYNTAX_CASES.values(), ids=SYNTAX_CASES)
def test_bad_yaml(text: str, place: str, mend: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_task_text(text, "t.yaml")
    check(caught.value, "t.yaml", place, mend)


def test_every_problem_is_listed_in_the_files_order() -> None:
    text = TASK.replace("tickets", "My Task").replace("metrics", "metrix") + "name: again\nprompt2: !tag 3\n"
    with pytest.raises(ConfigError) as caught:
        load_task_text(text, "t.yaml")
    assert caught.value.where == "t.yaml"
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[0] == "t.yaml: 6 problems"
    assert [line.split(" ")[0] for line in lines if line.startswith("t.yaml:") and "problems" not in line] == [
        "t.yaml:1:1:",
        "t.yaml:1:7:",
        "t.yaml:6:1:",
        "t.yaml:7:1:",
        "t.yaml:8:1:",
        "t.yaml:8:10:",
    ]
    assert lines.count("mend: did you mean `metrics`?") == 1


def test_a_tag_never_runs_anything() -> None:
    text = TASK.replace("name: tickets", "name: !!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="is not supported"):
        load_task_text(text, "t.yaml")


def test_messages_cannot_steer_the_terminal() -> None:
    with pytest.raises(ConfigError) as caught:
        load_task_text(TASK + '"\\e[31mred\\nname": 1\n' + "? " + "x" * 5000 + "\n: 1\n", "t.yaml")
    assert "\x1b" not in str(caught.value)
    assert "\\x1b[31mred\\nname" in str(caught.value)
    assert max(map(len, str(caught.value).splitlines())) < 700


def test_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "tickets.yaml").write_text(TASK)
    with pytest.raises(ConfigError, match="no such file") as caught:
        load_task(tmp_path / "ticket.yaml")
    assert caught.value.mend == f"did you mean {tmp_path / 'tickets.yaml'}?"
    (tmp_path / "fleet.yaml").write_text("adapters: {a: {task: ./tikets.yaml}}\n")
    with pytest.raises(ConfigError, match="no task file") as caught:
        load_fleet(tmp_path / "fleet.yaml")
    assert caught.value.mend == f"did you mean {tmp_path / 'tickets.yaml'}?"


def test_missing_folder_and_folder_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file") as caught:
        load_fleet(tmp_path / "nowhere" / "fleet.yaml")
    assert caught.value.mend is not None
    assert "cannot be read" in caught.value.mend
    with pytest.raises(ConfigError, match="this is a folder"):
        load_fleet(tmp_path)


def test_paths_that_no_system_takes() -> None:
    for path in ("a\0b", "x" * 5000):
        with pytest.raises(ConfigError, match="the file cannot be read"):
            load_fleet(path)


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_bytes("name: tickets\ndescription: für ".encode() + b"M\xfcller\n")
    with pytest.raises(ConfigError, match="0xFC is not UTF-8") as caught:
        load_task(path)
    check(caught.value, str(path), "2:19", "save the file in UTF-8")


def test_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(TASK, encoding="utf-8-sig")
    assert load_task(path).name == "tickets"


def test_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    padding = "#" * (1024 * 1024 - len(TASK) - 1) + "\n"
    path.write_text(padding + TASK)
    assert load_task(path).name == "tickets"
    path.write_text("#" + padding + TASK)
    with pytest.raises(ConfigError, match="larger than 1 MiB") as caught:
        load_task(path)
    assert caught.value.mend is not None
