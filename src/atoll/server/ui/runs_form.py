"""The form of a new run: what people choose, and the fleet file, task file and command that say the same."""

from __future__ import annotations

import io
import itertools
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from atoll.config.base import NAME_PATTERN
from atoll.config.fleet import FleetConfig
from atoll.config.load import load_task_text
from atoll.config.task import TaskConfig
from atoll.config.template import template_columns
from atoll.errors import UsageError
from atoll.server.ui.runs_upload import Sample
from atoll.tasks.task import builtin_tasks, find_task

TASK_NAME = "task.yaml"
TRAIN_NAME = "train.jsonl"
TEST_NAME = "test.jsonl"
RANKS = (4, 8, 16, 32, 64)
_MAX_LABELS = 20
_ROWS_PER_LABEL = 3  # fewer, and the answers are texts rather than classes
_MAX_TEMPLATE_CHARS = 8_000
_MAX_NEW_TOKENS = 256
_NAME_RULE = "a name has 1 to 64 of a-z, 0-9, '.', '_' and '-', and begins with a letter or digit"

_Rate = Annotated[float, Field(gt=0, le=1)]


class RunForm(BaseModel):
    """What the form's fields say. A run trains one adapter, which has the run's name.

    upload: the id of an upload; or task: the name of a built-in task. An empty `template` is filled in from the
    columns. limit: the most training examples; None takes all.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", str_max_length=_MAX_TEMPLATE_CHARS)

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "my-adapter"
    upload: str = ""
    task: str = ""
    inputs: tuple[str, ...] = ()
    target: str = ""
    template: str = ""
    r: Annotated[int, Field(ge=1, le=256)] = 16
    epochs: Annotated[int, Field(ge=1, le=100)] = 3
    learning_rate: Literal["auto"] | _Rate = "auto"
    limit: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @field_validator("limit", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("template")
    @classmethod
    def _line_ends(cls, value: str) -> str:
        return value.replace("\r\n", "\n")  # as browsers send them


def read_form(fields: Iterable[tuple[str, str]]) -> RunForm:
    """The form from a query or a body. Raises UsageError, which names the first field that is wrong."""
    values: dict[str, Any] = {}
    for name, value in itertools.islice(fields, 1000):
        if name == "inputs":
            values.setdefault("inputs", []).append(value)
        else:
            values[name] = value
    try:
        return RunForm.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "form"
        raise UsageError(_NAME_RULE if name == "name" else f"{name}: {first['msg']}", where=name) from None


def with_guesses(form: RunForm, sample: Sample) -> RunForm:
    """The form with what it leaves open filled in from an upload's first rows."""
    target = form.target if form.target in sample.columns else sample.target
    inputs = tuple(name for name in form.inputs if name in sample.columns and name != target)
    inputs = inputs or tuple(name for name in sample.columns if name != target)
    template = form.template
    if not template or _is_guess(template, sample):
        template = _template_for(inputs, target)
    return form.model_copy(update={"target": target, "inputs": inputs, "template": template})


def _is_guess(template: str, sample: Sample) -> bool:
    """Whether a template is what an earlier choice of columns made it, rather than written by somebody."""
    try:
        columns = template_columns(template)
    except ValueError:
        return False
    return any(template == _template_for(columns, target) for target in sample.columns)


def _template_for(inputs: Sequence[str], target: str) -> str:
    """The columns, one a paragraph, with their names where there are several."""
    if len(inputs) == 1:
        return f"{{{inputs[0]}}}\n\n{target}:"
    return "\n".join([*(f"{name}: {{{name}}}" for name in inputs), f"{target}:"])


def labels_of(targets: Sequence[str]) -> tuple[str, ...] | None:
    """The classes, where the answers are a closed set, most frequent first."""
    counts = Counter(targets)
    few = 2 <= len(counts) <= _MAX_LABELS and len(targets) >= _ROWS_PER_LABEL * len(counts)
    return tuple(label for label, _ in counts.most_common()) if few else None


def task_yaml(form: RunForm, targets: Sequence[str], longest_answer: int) -> str:
    """The task file of a run on uploaded rows. longest_answer: in tokens. Raises UsageError if it is not valid."""
    if not form.inputs:
        raise UsageError("choose at least one input column", where="inputs")
    labels = labels_of(targets)
    fields: dict[str, Any] = {
        "name": form.name,
        "dataset": {"train": TRAIN_NAME, "test": TEST_NAME},
        "prompt": {"template": LiteralScalarString(form.template) if "\n" in form.template else form.template},
        "input_columns": list(form.inputs),
        "target_column": form.target,
    }
    if labels is not None:
        fields["labels"] = list(labels)
    fields["metrics"] = ["accuracy"] if labels is not None else ["rouge_l", "exact_match"]
    fields["generation"] = {"max_new_tokens": min(_MAX_NEW_TOKENS, max(8, longest_answer + 4))}
    text = _dump(fields)
    load_task_text(text, TASK_NAME)
    return text


def fleet_yaml(form: RunForm, base_model: str, output: str) -> str:
    """The fleet file of a run."""
    task = form.task or f"./{TASK_NAME}"
    fields: dict[str, Any] = {
        "base_model": base_model,
        "output": output,
        "adapters": {form.name: {"task": task}},
        "adapter": {"r": form.r},
        "trainer": {"epochs": form.epochs, "learning_rate": form.learning_rate, "seed": form.seed},
    }
    if form.limit is not None:
        fields["data"] = {"limit": form.limit}
    FleetConfig.model_validate(fields)
    return _dump(fields)


def builtin_task(name: str) -> TaskConfig:
    """A task that ships with Atoll. Raises UsageError: no path of this machine may be named from a page."""
    if name not in builtin_tasks():
        raise UsageError(f"there is no built-in task named {name[:80]!r}", where="task")
    return find_task(name)


def command_line(arguments: Mapping[str, str], *words: str) -> str:
    """A command as one would type it."""
    options = itertools.chain.from_iterable((name, value) for name, value in arguments.items())
    return shlex.join(["atoll", *words, *options])


def _dump(fields: Mapping[str, Any]) -> str:
    yaml = YAML(typ="rt")
    yaml.width = 1_000_000
    text = io.StringIO()
    yaml.dump(dict(fields), text)
    return text.getvalue()
