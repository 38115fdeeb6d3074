"""docs/tasks.md and docs/metrics.md say what there is."""

from __future__ import annotations

import re
from pathlib import Path

from atoll.tasks.metrics import METRICS
from atoll.tasks.task import builtin_tasks, find_task

DOCS = Path(__file__).parents[2] / "docs"


def test_every_metric_is_described() -> None:
    text = (DOCS / "metrics.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == METRICS.keys()


def test_every_task_stands_in_the_table_with_its_metrics_and_licence() -> None:
    text = (DOCS / "tasks.md").read_text(encoding="utf-8")
    table = {line.split("|")[1].strip(" `"): line.split("|") for line in text.splitlines() if line.startswith("| `")}
    assert table.keys() | {"dates", "sql", "support"} == builtin_tasks().keys()
    for name, cells in table.items():
        task = find_task(name)
        assert cells[2].strip() == task.category
        assert tuple(re.findall(r"`(\w+)`", cells[3])) == task.metrics
        assert cells[7].strip() == task.licence
        gpt_4 = task.published.gpt_4 if task.published else None
        assert cells[6].strip() == ("-" if gpt_4 is None else f"{gpt_4:.3f}")


def test_a_metric_of_a_published_measure_is_described_with_the_tasks_that_have_it() -> None:
    text = (DOCS / "metrics.md").read_text(encoding="utf-8").partition("## As published")[2]
    described = {
        cells[1].strip(" `"): set(cells[2].strip().split(", "))
        for cells in (line.split("|") for line in text.splitlines() if line.startswith("| `"))
    }
    used: dict[str, set[str]] = {}
    for name in builtin_tasks():
        for metric in find_task(name).metrics:
            if metric.endswith("_as_published"):
                used.setdefault(metric, set()).add(name.removeprefix("glue_"))
    assert described == used
