"""Which examples are asked: labels in their shares, nothing twice, nothing that train has, smaller limits first."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.config.task import TaskConfig
from atoll.errors import DataError
from atoll.evaluation.sampling import choose_shots, draw_sample, spread
from atoll.tasks.dataset import Example
from support.fleets import write_rows


def make_task(**fields: Any) -> TaskConfig:
    defaults = {
        "name": "mood",
        "dataset": {"test": "absent.jsonl"},
        "target_column": "label",
        "prompt": {"template": "{text}"},
        "metrics": ["accuracy"],
    }
    return TaskConfig.model_validate(defaults | fields)


def example(number: int, label: str) -> Example:
    return Example(f"{number:016x}", {"text": f"text {number}", "label": label})


def rows(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in pairs]


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_every_beginning_has_the_labels_in_their_shares(counts: list[int], share: float, seed: int) -> None:
    labels = [f"label {index}" for index in range(len(counts))]
    examples = [example(100 * index + i, labels[index]) for index, count in enumerate(counts) for i in range(count)]
    task = make_task(labels=labels)
    ordered = spread(task, examples, seed)
    assert sorted(item.example_id for item in ordered) == sorted(item.example_id for item in examples)
    taken = ordered[: int(share * len(ordered))]
    found = Counter(item.row["label"] for item in taken)
    for label, count in zip(labels, counts, strict=True):
        assert abs(found[label] - count * len(taken) / len(examples)) <= len(counts)


def test_the_order_of_the_rows_in_the_file_decides_nothing_but_by_the_seed() -> None:
    examples = [example(number, "a" if number % 4 else "b") for number in range(40)]
    task = make_task(labels=["a", "b"])
    assert spread(task, examples, 1) == spread(task, examples, 1)
    assert spread(task, examples, 1) != spread(task, examples, 2)
    assert spread(task, examples, 1) != examples


def test_a_smaller_limit_keeps_the_first_ones(tmp_path: Path) -> None:
    (tmp_path / "mood").mkdir()
    write_rows(tmp_path / "mood" / "test.jsonl", rows(*((f"t{i}", "ab"[i % 2]) for i in range(20))))
    task = make_task(labels=["a", "b"])
    whole = draw_sample(task, data_root=tmp_path, seed=3).examples
    assert len(whole) == 20
    for limit in (1, 2, 7, 20, 100):
        assert draw_sample(task, data_root=tmp_path, seed=3, limit=limit).examples == whole[:limit]
    assert Counter(item.row["label"] for item in whole[:10]) == {"a": 5, "b": 5}


def test_inputs_that_occur_twice_or_in_train_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "mood").mkdir()
    test = rows(("once", "a"), ("twice", "a"), ("twice", "b"), ("leaked", "a"), ("leaked", "a"), ("other", "b"))
    write_rows(tmp_path / "mood" / "test.jsonl", test)
    # The answer may differ: what the model has seen is the question.
    write_rows(tmp_path / "mood" / "train.jsonl", rows(("leaked", "b"), ("train", "a")))
    sample = draw_sample(make_task(), data_root=tmp_path)
    assert sorted((item.row["text"], item.row["label"]) for item in sample.examples) == [
        ("once", "a"),
        ("other", "b"),
        ("twice", "a"),
    ]
    assert (sample.num_rows, sample.num_duplicates, sample.num_leaked) == (6, 2, 1)
    assert sample.train is not None
    assert len(sample.train) == 2


def test_a_test_split_that_is_all_in_train_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mood").mkdir()
    for split in ("test", "train"):
        write_rows(tmp_path / "mood" / f"{split}.jsonl", rows(("same", "a")))
    with pytest.raises(DataError, match="no test example of mood is left"):
        draw_sample(make_task(), data_root=tmp_path)


def test_train_is_not_fetched_from_elsewhere_for_a_test_split_that_is_here(tmp_path: Path) -> None:
    (tmp_path / "mood").mkdir()
    write_rows(tmp_path / "mood" / "test.jsonl", rows(("here", "a")))
    far = make_task(dataset={"train": "hf://datasets/nobody/nothing/train.parquet", "test": "absent.jsonl"})
    assert draw_sample(far, data_root=tmp_path).train is None


def test_a_task_without_a_test_split_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no test split"):
        draw_sample(make_task(dataset={"train": "train.jsonl"}), data_root=tmp_path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x", "sentiment": "a"}, "`label` is missing"),
        ({"text": "x", "label": None}, "missing"),
        ({"text": "x", "label": float("nan")}, "missing"),
        ({"text": "x", "label": "c"}, "none of the labels"),
    ],
)
def test_rows_that_cannot_be_scored_are_errors_that_name_them(tmp_path: Path, row: Any, said: str) -> None:
    (tmp_path / "mood").mkdir()
    write_rows(tmp_path / "mood" / "test.jsonl", [*rows(("fine", "a")), row])
    with pytest.raises(DataError, match=said):
        draw_sample(make_task(labels=["a", "b"]), data_root=tmp_path)


def test_shots_take_the_labels_in_turn_and_follow_the_seed() -> None:
    train = [example(number, "rare" if number == 7 else "common") for number in range(50)]
    random.Random(0).shuffle(train)
    task = make_task(labels=["common", "rare"])
    chosen = choose_shots(task, train, 2, seed=0)
    assert {item.row["label"] for item in chosen} == {"common", "rare"}
    assert choose_shots(task, train, 2, seed=0) == chosen
    assert choose_shots(task, train, 4, seed=0)[:2] == chosen
    assert any(choose_shots(task, train, 2, seed=seed) != chosen for seed in range(1, 5))
    assert len(choose_shots(make_task(), train, 64, seed=0)) == 50
