"""Rows from files become examples, exactly as written, or an error that names the place."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.config.task import TaskConfig
from atoll.errors import DataError
from atoll.tasks.dataset import data_digest, load_split
from atoll.tasks.reading import as_text, read_file
from atoll.tasks.task import find_task


def make_task(labels: list[str] | None = None, **dataset: Any) -> TaskConfig:
    return TaskConfig.model_validate(
        {
            "name": "mood",
            "dataset": dataset,
            "prompt": {"template": "{text}"},
            "target_column": "label",
            "metrics": ["accuracy"],
            "labels": labels,
        }
    )


def write_jsonl(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def some_rows(number: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"text {index}", "label": index % 2} for index in range(start, start + number)]


def texts(examples: list[Any]) -> set[str]:
    return {example.row["text"] for example in examples}


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": 'a, "b"\nc', "label": "007"}, {"text": "é日本", "label": ""}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.ndjson").write_text("\ufeff\n" + lines)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(lines)
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with open(tmp_path / name, "w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    with gzip.open(tmp_path / "a.csv.gz", "wb") as file:
        file.write((tmp_path / "a.csv").read_bytes())
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for path in tmp_path.iterdir():
        assert [record.values for record in read_file(path)] == rows, path.name


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (True, "true"), (3.8, "3.8"), (3.0, "3.0"), (10**30, str(10**30)), (" x ", " x "), (["é"], '["é"]')],
)
def test_values_are_as_written(tmp_path: Path, value: Any, text: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x", "label": value}])
    [example] = load_split(make_task(test=path), "test")
    assert example.row == {"text": "x", "label": text}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_keeps_its_value(value: float) -> None:
    assert float(as_text(value)) == value


def test_globs_and_query(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "part-1.jsonl", some_rows(3))
    write_jsonl(tmp_path / "part-2.jsonl", some_rows(3, 3))
    glob = str(tmp_path / "part-*.jsonl")
    assert len(load_split(make_task(test=glob), "test")) == 6
    sql = "SELECT upper(text) AS text, CASE label WHEN 0 THEN 'no' ELSE 'yes' END AS label FROM data WHERE label < 1"
    examples = load_split(make_task(test={"path": glob, "sql": sql}), "test")
    assert texts(examples) == {"TEXT 0", "TEXT 2", "TEXT 4"}
    assert {example.row["label"] for example in examples} == {"no"}


def test_a_query_keeps_values_of_several_types_as_written(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": 2.5}])
    examples = load_split(make_task(test={"path": path, "sql": "SELECT * FROM data"}), "test")
    assert {example.row["label"] for example in examples} == {"1", "2.5"}


def test_a_query_sees_its_table_only(tmp_path: Path) -> None:
    secret = write_jsonl(tmp_path / "secret.jsonl", [{"text": "secret", "label": 1}])
    path = write_jsonl(tmp_path / "a.jsonl", some_rows(1))
    queries = [
        f"SELECT * FROM '{secret}'",
        "SELECT * FROM records",
        "SELEC",
        "INSTALL httpfs",
    ]
    for sql in [*queries, f"COPY data TO '{tmp_path}/out.csv'", "SET enable_external_access = true"]:
        with pytest.raises(DataError, match="the query failed"):
            load_split(make_task(test={"path": path, "sql": sql}), "test")
    assert not (tmp_path / "out.csv").exists()


def test_the_seed_shuffles_and_a_limit_keeps_the_first(tmp_path: Path) -> None:
    task = make_task(test=write_jsonl(tmp_path / "a.jsonl", some_rows(50)))
    whole = load_split(task, "test", seed=3)
    assert load_split(task, "test", seed=3, limit=7) == whole[:7]
    assert load_split(task, "test", seed=4) != whole
    assert texts(load_split(task, "test", seed=4)) == texts(whole)
    assert len({example.example_id for example in whole}) == 50
    assert data_digest(whole) == data_digest(load_split(task, "test", seed=3))
    assert data_digest(whole) != data_digest(whole[::-1])
    assert data_digest(whole).startswith("sha256:")


def test_validation_is_set_aside_whatever_the_seed(tmp_path: Path) -> None:
    rows = some_rows(40) * 2
    task = make_task(train=write_jsonl(tmp_path / "a.jsonl", rows))
    train, validation = (load_split(task, split, seed=seed) for split, seed in (("train", 1), ("validation", 2)))
    assert len(train) + len(validation) == 80
    assert len(texts(validation)) == 4
    assert not texts(train) & texts(validation)
    large = make_task(train=write_jsonl(tmp_path / "b.jsonl", some_rows(6000)))
    assert len(load_split(large, "validation")) == 500
    assert len(load_split(large, "train")) == 5500
    single = make_task(train=write_jsonl(tmp_path / "c.jsonl", some_rows(1)))
    assert len(load_split(single, "train")) == 1
    assert load_split(single, "validation") == []


def test_the_data_root_goes_before_the_tasks_own_source(tmp_path: Path) -> None:
    own = write_jsonl(tmp_path / "own.jsonl", some_rows(20))
    write_jsonl(tmp_path / "root" / "mood" / "test.jsonl", some_rows(3, 100))
    task = make_task(train=own, validation=own, test=own)
    root = tmp_path / "root"
    assert texts(load_split(task, "test", data_root=root)) == {"text 100", "text 101", "text 102"}
    assert len(load_split(task, "train", data_root=root)) == 20
    # A train file alone brings its own validation: the task's might hold the same rows.
    write_jsonl(root / "mood" / "train.jsonl", some_rows(10, 200))
    assert len(load_split(task, "train", data_root=root)) == 9
    assert texts(load_split(task, "validation", data_root=root)) <= {f"text {index}" for index in range(200, 210)}
    write_jsonl(root / "mood" / "validation.jsonl", some_rows(2, 300))
    assert len(load_split(task, "train", data_root=root)) == 10
    assert texts(load_split(task, "validation", data_root=root)) == {"text 300", "text 301"}
    with pytest.raises(DataError, match="no such folder"):
        load_split(task, "test", data_root=tmp_path / "nowhere")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x", "label": 1}, {"text": "y", "labels": 1}])
    with pytest.raises(DataError) as caught:
        load_split(make_task(test=path), "test")
    assert str(caught.value).startswith(f"{path}:2, column `label`: the column `label` is missing")
    assert "did you mean `labels`?" in str(caught.value)


def test_null_is_refused_where_it_is_needed(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": 1, "note": None}, {"text": None, "label": 1, "note": None}]
    task = make_task(test=write_jsonl(tmp_path / "a.jsonl", rows))
    with pytest.raises(DataError, match=r"a\.jsonl:2, column `text`: the value of `text` is missing \(null\)"):
        load_split(task, "test")
    sql = "SELECT * FROM data WHERE text IS NOT NULL"
    query = make_task(test={"path": str(tmp_path / "a.jsonl"), "sql": sql})
    assert len(load_split(query, "test")) == 1
    pq.write_table(pa.table({"text": ["x"], "label": [float("nan")]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 1, column `label`"):
        load_split(make_task(test=str(tmp_path / "a.parquet")), "test")


def test_a_wrong_label_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x", "label": "good"}, {"text": "y", "label": "Goood"}])
    with pytest.raises(DataError) as caught:
        load_split(make_task(["good", "bad"], test=path), "test")
    assert f"{path}:2, column `label`: 'Goood' is none of the labels" in str(caught.value)
    assert "write 'good'" in str(caught.value)
    assert len(load_split(make_task(["good", "Goood"], test=path), "test")) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": 1\n', r"a\.jsonl:1:\d+: not valid JSON"),
        ("a.jsonl", b'\n["x"]\n', r"a\.jsonl:2: the line holds no JSON object"),
        ("a.jsonl", b'{"text": "\xff"}\n', r"not UTF-8 text"),
        ("a.jsonl", b"[" * 100_000 + b"\n", r"a\.jsonl:1: not valid JSON"),
        ("a.jsonl", b'{"text": "\\ud83d", "label": 1}\n', r"a\.jsonl:1, column `text`: the value is not valid text"),
        ("a.jsonl", b"", r"the test split of mood is empty"),
        ("a.jsonl.gz", b"no gzip", r"damaged"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 100, mtime=0)[:-20], r"damaged"),
        ("a.csv", b"text,label\nx,1\ny,2,3\n", r"a\.csv:3: the row has 3 fields, the header has 2"),
        ("a.csv", b"text,text\n", r"two columns are called `text`"),
        ("a.csv", b'text,label\n"x"y,1\n', r"a\.csv:2: not valid CSV"),
        ("a.csv", b"text,label\n", r"split of mood is empty"),
        ("a.csv", b"text;label\nx;1\n", r"the column `text` is missing"),
        ("a.parquet", b"PAR1", r"not a valid Parquet file"),
        ("a.xlsx", b"", r"this kind of file cannot be read"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_split(make_task(test=str(tmp_path / name)), "test")
    assert caught.value.mend
    assert caught.value.exit_code == 3


def test_missing_files_and_splits(tmp_path: Path) -> None:
    task = make_task(train=str(tmp_path / "no-*.csv"))
    with pytest.raises(DataError, match=r"no-\*\.csv: there is no such file"):
        load_split(task, "train")
    with pytest.raises(DataError, match="the task mood has no test split"):
        load_split(task, "test")
    for address in ("s3://bucket/a.csv", "https://example.org/a.csv"):
        with pytest.raises(DataError, match="this kind of address"):
            load_split(make_task(test=address), "test")
    with pytest.raises(DataError, match="no address of a file in a data set"):
        load_split(make_task(test="hf://owner/name/a.csv"), "test")


def test_the_hub_is_read_through_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, with a repository in the cache as an earlier download leaves it."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    task = make_task(test="hf://datasets/owner/name@refs/convert/parquet/data/part-*.jsonl")
    with pytest.raises(DataError, match="cannot be fetched from the hub"):
        load_split(task, "test")
    repo = tmp_path / "datasets--owner--name"
    commit = "0" * 40
    write_jsonl(repo / "snapshots" / commit / "data" / "part-0.jsonl", some_rows(4))
    (repo / "refs" / "refs" / "convert").mkdir(parents=True)
    (repo / "refs" / "refs" / "convert" / "parquet").write_text(commit)
    assert len(load_split(task, "test")) == 4


@pytest.mark.parametrize("name", ["dates", "sql", "support"])
def test_generated_tasks_load_without_any_file(name: str) -> None:
    task = find_task(name)
    splits = {split: load_split(task, split) for split in ("train", "validation", "test")}
    inputs = {
        split: {tuple(example.row[column] for column in task.input_columns) for example in examples}
        for split, examples in splits.items()
    }
    assert not inputs["train"] & inputs["test"]
    assert not inputs["train"] & inputs["validation"]


@pytest.mark.parametrize("name", ["glue_sst2", "conllpp", "viggo", "covid", "legal", "e2e_nlg"])
def test_the_real_data_load(loraland: Path, name: str) -> None:
    task = find_task(name)
    train = load_split(task, "train", data_root=loraland)
    test = load_split(task, "test", data_root=loraland, limit=300)
    assert len(train) > 5000
    assert len(test) == 300
    assert all(example.row[task.target_column] for example in train)
