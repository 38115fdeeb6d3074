"""`atoll tasks`: the tasks that ship with Atoll, and what a task asks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atoll.config.task import TaskConfig

tasks = typer.Typer(help="List the built-in tasks, or show one.", no_args_is_help=True, rich_markup_mode=None)


@tasks.command("ls")
def ls(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False) -> None:
    """List the tasks that ship with Atoll.

    Example: atoll tasks ls
    """
    from atoll.tasks.task import builtin_tasks, find_task

    for name in builtin_tasks():
        task = find_task(name)
        if as_json:
            fields = {"name": name, "category": task.category, "metrics": task.metrics, "description": task.description}
            print(json.dumps(fields, ensure_ascii=False))
        else:
            print(f"{name:<12} {task.category:<14} {task.metrics[0]:<14} {task.description}")


@tasks.command("show")
def show(
    task: Annotated[str, typer.Argument(help="A built-in task's name or a task file's path.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole definition as JSON.")] = False,
) -> None:
    """Show what a task asks, with a worked example.

    Example: atoll tasks show glue_sst2
    """
    from atoll.tasks.task import find_task

    config = find_task(task)
    print(config.model_dump_json(indent=2) if as_json else "\n".join(_lines(config)))


def _lines(task: TaskConfig) -> Iterator[str]:
    fields = {
        "task": f"{task.name} ({task.category})",
        "asks": task.description,
        "inputs": ", ".join(task.input_columns),
        "answer": task.target_column + (f": {', '.join(task.labels)}" if task.labels else ""),
        "metrics": ", ".join(task.metrics),
        "system": task.prompt.system or "",
        "prompt": task.prompt.template,
        "data": ", ".join(
            f"{split} {source.path or f'generated ({source.generated})'}"
            for split in ("train", "validation", "test")
            if (source := getattr(task.dataset, split)) is not None
        ),
        "licence": task.licence,
    }
    if task.example is not None:
        fields["example"] = "\n".join(f"{column}: {text}" for column, text in task.example.inputs.items())
        fields["gives"] = task.example.target
    if task.published is not None:
        scores = {"Mistral-7B tuned": task.published.mistral_7b, "GPT-4": task.published.gpt_4}
        listed = ", ".join(f"{name} {score:.3f}" for name, score in scores.items() if score is not None)
        fields["published"] = f"{task.published.metric}: {listed} ({task.published.source})"
    for name, text in fields.items():
        if text:
            yield f"{name + ':':<11}" + text.rstrip("\n").replace("\n", "\n" + 11 * " ")
