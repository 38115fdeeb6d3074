"""What a run would train on, before it starts: prompts with their trained tokens, and counts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atoll.config.load import load_task_text
from atoll.config.task import TaskConfig
from atoll.errors import UsageError
from atoll.server.ui.runs_form import TASK_NAME, RunForm, task_yaml
from atoll.server.ui.runs_upload import Sample
from atoll.tasks.audit import XRay, x_ray
from atoll.tasks.dataset import is_at_hand, load_split
from atoll.tasks.task import builtin_tasks, find_task
from atoll.text.encoding import encoder_of
from atoll.text.prompt import PromptRenderer

if TYPE_CHECKING:
    from atoll.model.load import BaseModel

NUM_SHOWN = 3
_MAX_LENGTH = 1024
_MAX_ANSWER_CHARS = 4000
_MAX_PREVIEW_TASK_ROWS = 200


@dataclass(frozen=True)
class Preview:
    """Examples as the model will see them. mean_tokens: of the rows that were looked at, prompt and answer together."""

    xrays: tuple[XRay, ...]
    mean_tokens: float
    task_yaml: str
    labels: tuple[str, ...]


def preview_upload(form: RunForm, sample: Sample, base: BaseModel) -> Preview:
    """Of an upload's first rows. Raises ConfigError, DataError or UsageError, which say what to change."""
    rows = [row for row in sample.rows if row.get(form.target, "").strip()]
    if not rows:
        raise UsageError(f"the column `{form.target}` is empty in the first rows", mend="choose another one")
    targets = [row[form.target] for row in rows]
    text = task_yaml(form, targets, longest_answer(base, targets))
    task = load_task_text(text, TASK_NAME)
    full = [{name: row.get(name, "") for name in (*form.inputs, form.target)} for row in rows]
    return _preview(task, full, base, text)


def preview_task(task: TaskConfig, base: BaseModel) -> Preview:
    """Of a built-in task whose rows are at hand; of its worked example where they are not."""
    if is_at_hand(task, "train"):
        rows = [example.row for example in load_split(task, "train", limit=_MAX_PREVIEW_TASK_ROWS)]
    elif task.example is not None:
        rows = [{**task.example.inputs, task.target_column: task.example.target}]
    else:
        rows = []
    return _preview(task, rows, base, "")


def tasks_at_hand() -> list[TaskConfig]:
    """The built-in tasks that can be trained without the network, by name."""
    tasks = (find_task(name) for name in builtin_tasks())
    return [task for task in tasks if is_at_hand(task, "train")]


def longest_answer(base: BaseModel, targets: Sequence[str]) -> int:
    """In tokens."""
    encoder = encoder_of(base.tokenizer)
    return max(len(encoder.continuation(target[:_MAX_ANSWER_CHARS])) for target in targets)


def _preview(task: TaskConfig, rows: Sequence[Mapping[str, str]], base: BaseModel, text: str) -> Preview:
    renderer = PromptRenderer(
        base.tokenizer, task.prompt, task.input_columns, task.target_column, min(base.max_length, _MAX_LENGTH)
    )
    examples = [renderer.supervised(row) for row in rows]
    mean = sum(len(example.ids) for example in examples) / len(examples) if examples else 0.0
    shown = itertools.islice(examples, NUM_SHOWN)
    return Preview(tuple(x_ray(base.tokenizer, example) for example in shown), mean, text, task.labels or ())
