"""Parts of a file: every row in one of them, what belongs together together, every label with its share."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.config.load import load_task_text
from atoll.config.task import PartConfig
from atoll.errors import ConfigError, DataError
from atoll.tasks.dataset import SPLITS, load_split
from atoll.tasks.parts import Record, take_part

VALUES = st.sampled_from(["", "a", "b", "c", "é", None, 1, 1.5, True, ["x"]])
ROWS = st.lists(st.fixed_dictionaries({"text": VALUES, "label": VALUES, "n": st.integers(0, 9)}), max_size=40)
CUTS = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4, unique=True).map(sorted)
TASK = """\
name: t
dataset:
  train: {path: t.csv, part: {end: 0.5}}
  validation: {path: t.csv, part: {start: 0.5, end: 0.75}}
  test: {path: t.csv, part: {start: 0.75}}
prompt: {template: "{x}"}
target_column: y
metrics: [accuracy]
"""


def records(rows: list[dict[str, object]]) -> list[Record]:
    return [Record(row, f"rows:{number}") for number, row in enumerate(rows)]


def parts(rows: list[Record], cuts: list[float], **fields: object) -> list[list[Record]]:
    bounds = [0.0, *cuts, 1.0]
    return [
        take_part(rows, PartConfig.model_validate({"start": start, "end": end, **fields}))
        for start, end in itertools.pairwise(bounds)
    ]


@given(ROWS, CUTS, st.sampled_from([[], ["text"], ["text", "label"]]), st.sampled_from([None, "label"]))
@settings(max_examples=150, deadline=None)
def test_parts_that_cover_all_hold_every_row_once_and_share_no_group(
    rows: list[dict[str, object]], cuts: list[float], together: list[str], stratify: str | None
) -> None:
    found = parts(records(rows), cuts, together=together, stratify=stratify, seed=3)
    assert sorted(record.where for part in found for record in part) == sorted(r.where for r in records(rows))
    # Made-up rows have their columns in any order, as lines of JSON may; equal rows belong together all the same.
    groups = [{str([r.values[column] for column in together or sorted(r.values)]) for r in part} for part in found]
    assert sum(map(len, groups)) == len(set().union(*groups))


def test_a_part_has_its_share_and_another_seed_draws_others() -> None:
    rows = records([{"text": str(number)} for number in range(1000)])
    first, second, third = parts(rows, [0.7, 0.8])
    assert list(map(len, (first, second, third))) == [700, 100, 200]
    assert take_part(rows, PartConfig(end=0.7)) == first
    assert take_part(rows, PartConfig(end=0.7, seed=1)) != first


def test_the_order_of_the_rows_decides_nothing() -> None:
    rows, part = records([{"text": str(number)} for number in range(100)]), PartConfig(end=0.3)
    assert {record.where for record in take_part(rows[::-1], part)} == {
        record.where for record in take_part(rows, part)
    }


def test_each_label_keeps_its_share() -> None:
    rows = records([{"text": str(number), "label": "rare" if number % 10 == 0 else "common"} for number in range(400)])
    for part, size in zip(parts(rows, [0.8, 0.9], stratify="label"), (0.8, 0.1, 0.1), strict=True):
        assert Counter(record.values["label"] for record in part) == {"common": 360 * size, "rare": 40 * size}


def test_a_missing_column_is_named_with_a_guess() -> None:
    with pytest.raises(DataError, match="`txt`, which is missing") as caught:
        take_part(records([{"text": "a"}]), PartConfig(together=("txt",)))
    assert caught.value.mend == "did you mean `text`?"


def test_one_file_makes_three_splits(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{number},{number % 2}\n" for number in range(40)))
    task = load_task_text(TASK, "t.yaml", folder=tmp_path)
    rows = [example.row["x"] for split in SPLITS for example in load_split(task, split)]
    assert sorted(map(int, rows)) == list(range(40))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{start: 0.75}", "{start: 0.5, end: 0.5}", "must be above `start`"),
        ("{start: 0.75}", "{strat: y}", "did you mean `start`"),
        ("path: t.csv, part: {end: 0.5}", "generated: sql, part: {end: 0.5}", "works on `path` only"),
    ],
)
def test_a_part_that_cannot_be_is_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task_text(TASK.replace(old, new), "t.yaml")
