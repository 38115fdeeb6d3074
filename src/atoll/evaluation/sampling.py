"""Which test examples are asked: no inputs twice, none that train has too, labels in their shares, order by seed."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll.config.task import TaskConfig
from atoll.errors import DataError
from atoll.tasks.dataset import Example, Split, has_split, is_at_hand, load_rows, split_hub_dataset

SPLIT: Split = "test"


@dataclass(frozen=True)
class Sample:
    """The examples to ask, and the whole of train, None where it cannot be had.

    num_rows: rows of the test split; num_duplicates of them repeat the inputs of an earlier one, num_leaked have the
    inputs of a row of train. hub_dataset: where on the hub the rows are from, "" for other sources.
    """

    examples: list[Example]
    train: list[Example] | None
    num_rows: int
    num_duplicates: int
    num_leaked: int
    hub_dataset: str


def draw_sample(task: TaskConfig, *, data_root: Path | None = None, limit: int | None = None, seed: int = 0) -> Sample:
    """At most `limit` examples of the test split; a smaller limit keeps the first ones, labels in their shares again.

    Train is not fetched over the network for a test split that is at hand. Raises DataError for data that cannot be
    read, and where train leaves no test example.
    """
    rows = load_rows(task, SPLIT, data_root=data_root, for_scoring=True)
    train = _train(task, data_root)
    trained = {_inputs(task, example) for example in train or ()}
    first = {_inputs(task, example): example for example in reversed(rows)}  # of equal inputs the first row stays
    clean = [example for inputs, example in reversed(first.items()) if inputs not in trained]
    if not clean:
        why = f"the inputs of all {len(rows)} rows are in train too"
        mend = "give the task test rows that it is not tuned on"
        raise DataError(f"no test example of {task.name} is left", where=f"dataset.{SPLIT}", why=why, mend=mend)
    return Sample(
        examples=spread(task, clean, seed)[:limit],
        train=train,
        num_rows=len(rows),
        num_duplicates=len(rows) - len(first),
        num_leaked=len(first) - len(clean),
        hub_dataset=split_hub_dataset(task, SPLIT, data_root=data_root),
    )


def spread(task: TaskConfig, examples: Sequence[Example], seed: int) -> list[Example]:
    """All of `examples`, shuffled by `seed`; where the task has labels, every beginning has them in their shares.

    The i-th of a label's n examples stands at (i + 1/2) / n of the way, so that a beginning holds each label to within
    one of its share.
    """
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    if task.labels is None:
        return shuffled
    places: list[tuple[float, Example]] = []
    for same in by_target(task, shuffled).values():
        places += [((index + 0.5) / len(same), example) for index, example in enumerate(same)]
    return [example for _, example in sorted(places, key=lambda place: place[0])]


def choose_shots(task: TaskConfig, train: Sequence[Example], num_shots: int, seed: int) -> list[Example]:
    """Examples to show before a prompt: each label in turn where the task has labels; fewer where train has fewer."""
    shuffled = list(train)
    random.Random(seed).shuffle(shuffled)
    if task.labels is None:
        return shuffled[:num_shots]
    rounds = [(index, example) for same in by_target(task, shuffled).values() for index, example in enumerate(same)]
    return [example for _, example in sorted(rounds, key=lambda item: item[0])][:num_shots]


def by_target(task: TaskConfig, examples: Sequence[Example]) -> dict[str, list[Example]]:
    """The examples by their target, in the order they come in."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.row[task.target_column]].append(example)
    return groups


def _inputs(task: TaskConfig, example: Example) -> tuple[str, ...]:
    return tuple(example.row[column] for column in task.input_columns)


def _train(task: TaskConfig, data_root: Path | None) -> list[Example] | None:
    if not has_split(task, "train", data_root=data_root):
        return None
    is_near = is_at_hand(task, "train", data_root=data_root)
    if not is_near and is_at_hand(task, SPLIT, data_root=data_root):
        return None
    return load_rows(task, "train", data_root=data_root)
