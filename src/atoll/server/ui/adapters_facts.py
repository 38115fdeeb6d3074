"""What an adapter's own files say of it: shape, card, contract, and the task it was trained for."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from atoll.adapters.peft_files import CONFIG_NAME
from atoll.adapters.store import CARD_NAME, StoredAdapter
from atoll.config.task import TaskConfig
from atoll.errors import AtollError
from atoll.tasks.task import builtin_tasks, find_task

_MAX_CARD_BYTES = 256 << 10
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_MAX_METRIC_CHARS = 60
OTHER_CATEGORY = "other"


@dataclass(frozen=True)
class Scores:
    """An adapter's score on its task, between 0 and 1, and those of others. low, high: of a 95 % interval.

    gpt_4: published, on other examples.
    """

    metric: str
    adapter: float
    low: float | None = None
    high: float | None = None
    base: float | None = None
    gpt_4: float | None = None

    @property
    def lift(self) -> float | None:
        """What tuning has gained over the base model."""
        return None if self.base is None else self.adapter - self.base


@dataclass(frozen=True)
class AdapterFacts:
    """One adapter as pages show it. rank: the largest one. scores: None for one that was never scored."""

    adapter: StoredAdapter
    rank: int | None
    alpha: float | None
    modules: tuple[str, ...]
    size_bytes: int
    task: TaskConfig | None
    category: str
    description: str
    scores: Scores | None

    @property
    def name(self) -> str:
        return self.adapter.name

    @property
    def id(self) -> str:
        return self.adapter.id

    @property
    def columns(self) -> tuple[str, ...]:
        """The input columns of its template; none for an adapter without a contract."""
        contract = self.adapter.contract
        return contract.prompt.columns if contract else ()

    @property
    def licence(self) -> str:
        """Of the data that it was trained on."""
        return self.adapter.contract.licence if self.adapter.contract else ""

    @property
    def cost_usd(self) -> float | None:
        """What its training cost."""
        training = self.adapter.contract.training if self.adapter.contract else None
        return training.cost_usd if training else None

    @property
    def examples(self) -> tuple[dict[str, str], ...]:
        """Inputs to begin with: the task's worked example, where its columns are the adapter's."""
        if self.task is None or self.task.example is None:
            return ()
        inputs = self.task.example.inputs
        fits = self.columns and all(column in inputs for column in self.columns)
        return ({column: inputs[column] for column in self.columns},) if fits else ()


def read_facts(adapter: StoredAdapter) -> AdapterFacts:
    """Read an adapter's files. A part that is damaged or absent is left out: what can be shown is shown."""
    contract = adapter.contract
    task = _builtin_task(contract.task) if contract else None
    config = _peft_config(adapter)
    ranks = [config.get("r"), *_values(config.get("rank_pattern"))]
    return AdapterFacts(
        adapter=adapter,
        rank=max((rank for rank in ranks if isinstance(rank, int)), default=None),
        alpha=config["lora_alpha"] if isinstance(config.get("lora_alpha"), int | float) else None,
        modules=_short_names(config.get("target_modules")),
        size_bytes=_size(adapter),
        task=task,
        category=task.category if task else OTHER_CATEGORY,
        description=(contract.description if contract else "") or (task.description if task else ""),
        scores=_card_scores(adapter, task),
    )


@cache
def _builtin_task(name: str) -> TaskConfig | None:
    try:
        return find_task(name) if name in builtin_tasks() else None
    except AtollError:
        return None


def _values(pattern: object) -> list[Any]:
    return list(pattern.values()) if isinstance(pattern, dict) else []


def _short_names(modules: object) -> tuple[str, ...]:
    """`q_proj` for every `model.layers.0.self_attn.q_proj`; a pattern as it is."""
    if isinstance(modules, list):
        return tuple(sorted({str(module).rpartition(".")[2] for module in modules}))
    return (str(modules),) if modules else ()


def _peft_config(adapter: StoredAdapter) -> dict[str, Any]:
    try:
        with (adapter.folder / CONFIG_NAME).open("rb") as file:
            config = json.loads(file.read(1 << 20))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _size(adapter: StoredAdapter) -> int:
    try:
        return adapter.size_bytes
    except OSError:
        return 0


def _card_scores(adapter: StoredAdapter, task: TaskConfig | None) -> Scores | None:
    """The first score in the `model-index` of the model card."""
    try:
        with (adapter.folder / CARD_NAME).open("rb") as file:
            card = file.read(_MAX_CARD_BYTES).decode("utf-8", "replace")
        match = _FRONT_MATTER.match(card)
        front: Any = YAML(typ="safe", pure=True).load(io.StringIO(match[1])) if match else None
        metric = front["model-index"][0]["results"][0]["metrics"][0]
        interval = metric.get("args") or {}
        return Scores(
            metric=str(metric["type"])[:_MAX_METRIC_CHARS],
            adapter=float(metric["value"]),
            low=_number(interval.get("low")),
            high=_number(interval.get("high")),
            gpt_4=published_gpt_4(task),
        )
    except (OSError, YAMLError, RecursionError, LookupError, TypeError, ValueError, AttributeError):
        return None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def published_gpt_4(task: TaskConfig | None) -> float | None:
    """What was published of GPT-4 on a task."""
    return task.published.gpt_4 if task and task.published else None
