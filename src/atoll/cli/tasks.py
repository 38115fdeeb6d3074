"""`atoll tasks`: the tasks that ship with Atoll, and what a task asks."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.completion import task_names
from atoll.cli.output import Column, print_json, print_table

if TYPE_CHECKING:
    from atoll.config.task import TaskConfig

tasks = typer.Typer(help="List the built-in tasks, or show one.", no_args_is_help=True, rich_markup_mode=None)

DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", help="A folder whose <task>/<split> files replace the tasks' sources; adds sizes."),
]
_INDENT = 11


@tasks.command("ls")
def ls(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    data_root: DataRoot = None,
) -> None:
    """List the tasks that ship with Atoll.

    Example: atoll tasks ls
    """
    from atoll.tasks.task import builtin_tasks, find_task

    rows = [_row(find_task(name), data_root) for name in builtin_tasks()]
    if as_json:
        for row in rows:
            print_json(row)
    else:
        _print_table(rows, with_sizes=data_root is not None)


@tasks.command("show")
def show(
    task: Annotated[
        str,
        typer.Argument(
            help="A built-in task's name or a task file's path.", autocompletion=task_names, show_default=False
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole definition as JSON.")] = False,
    data_root: DataRoot = None,
    base_model: Annotated[
        str | None, typer.Option(help="Render the example with this base's chat template, token by token.")
    ] = None,
) -> None:
    """Show what a task asks, with a worked example; the part that is trained stands in brackets, or in colour.

    Example: atoll tasks show glue_sst2
    """
    from atoll.tasks.task import find_task

    config = find_task(task)
    if as_json:
        fields = config.model_dump(mode="json") | ({"sizes": _sizes(config, data_root)} if data_root else {})
        print(json.dumps(fields, indent=2, ensure_ascii=False))
        return
    in_color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print("\n".join(_lines(config, _sizes(config, data_root))))
    if config.example is not None:
        print("\n".join(_example_lines(config, base_model, in_color=in_color)))


def _row(task: TaskConfig, data_root: Path | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": task.name,
        "category": task.category,
        "metrics": task.metrics,
        "labels": len(task.labels) if task.labels else None,
        "gpt_4": task.published.gpt_4 if task.published else None,
        "description": task.description,
    }
    return row | ({"sizes": _sizes(task, data_root)} if data_root else {})


def _print_table(rows: list[dict[str, Any]], *, with_sizes: bool) -> None:
    columns = [Column(name, folds=False) for name in ("task", "category", "metric")]
    columns += [Column(name, is_number=True, folds=False) for name in ("labels", "GPT-4")]
    columns += [Column("examples", folds=False)] if with_sizes else []
    print_table([*columns, Column("asks")], (_cells(row, with_sizes=with_sizes) for row in rows))


def _cells(row: dict[str, Any], *, with_sizes: bool) -> list[str]:
    gpt_4 = "-" if row["gpt_4"] is None else f"{row['gpt_4']:.3f}"
    cells = [row["name"], row["category"], row["metrics"][0], str(row["labels"] or "-"), gpt_4]
    return [*cells, *([_sizes_text(row["sizes"])] if with_sizes else []), row["description"]]


def _sizes(task: TaskConfig, data_root: Path | None) -> dict[str, int]:
    """The number of examples of each split whose rows are on this machine. Raises DataError for a damaged file."""
    from atoll.tasks.dataset import SPLITS, is_at_hand, load_split

    return {
        split: len(load_split(task, split, data_root=data_root))
        for split in SPLITS
        if is_at_hand(task, split, data_root=data_root)
    }


def _sizes_text(sizes: dict[str, int]) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in sizes.items()) or "-"


def _lines(task: TaskConfig, sizes: dict[str, int]) -> Iterator[str]:
    fields = {
        "task": f"{task.name} ({task.category})",
        "asks": task.description,
        "inputs": ", ".join(task.input_columns),
        "answer": task.target_column + (f": {', '.join(task.labels)}" if task.labels else ""),
        "metrics": ", ".join(task.metrics),
        "system": task.prompt.system or "",
        "prompt": task.prompt.template,
        "generates": f"at most {task.generation.max_new_tokens} tokens",
        "data": "\n".join(
            f"{split}: {source.path or f'generated ({source.generated})'}" + (", through a query" if source.sql else "")
            for split in ("train", "validation", "test")
            if (source := getattr(task.dataset, split)) is not None
        ),
        "sizes": _sizes_text(sizes) if sizes else "",
        "licence": task.licence,
        "published": _published_text(task),
    }
    for name, text in fields.items():
        if text:
            yield f"{name + ':':<{_INDENT}}" + text.rstrip("\n").replace("\n", "\n" + _INDENT * " ")


def _published_text(task: TaskConfig) -> str:
    if task.published is None:
        return ""
    from atoll.config.task import PUBLISHED_NAMES

    scores = ((name, getattr(task.published, field)) for field, name in PUBLISHED_NAMES.items())
    listed = ", ".join(f"{name} {score:.3f}" for name, score in scores if score is not None)
    return f"{task.published.metric}: {listed} ({task.published.source})"


def _example_lines(task: TaskConfig, base_model: str | None, *, in_color: bool) -> Iterator[str]:
    """The worked example as it is trained on: in a base's own tokens, or without a base as plain text."""
    if task.example is None:
        raise ValueError("the task has no worked example")
    row = {**task.example.inputs, task.target_column: task.example.target}
    if base_model is not None:
        from atoll.cli.check_report import xray_lines
        from atoll.model.load import load_tokenizer
        from atoll.model.source import resolve_base
        from atoll.tasks.audit import x_ray
        from atoll.text.prompt import PromptRenderer

        tokenizer = load_tokenizer(resolve_base(base_model).folder)
        renderer = PromptRenderer(tokenizer, task.prompt, task.input_columns, task.target_column)
        yield from xray_lines(x_ray(tokenizer, renderer.supervised(row)), in_color=in_color)
        return
    from atoll.cli.check_report import visible
    from atoll.config.template import parse_template

    parts = parse_template(task.prompt.template)
    prompt = "".join(row[part.text] if part.is_column else part.text for part in parts)
    target = visible(task.example.target, keep="\n")
    answer = typer.style(target, fg="black", bg="green") if in_color else f"[{target}]"
    yield "example:"
    if task.prompt.system:
        yield from ("    " + visible(task.prompt.system, keep="\n").replace("\n", "\n    "), "")
    separator = "" if prompt.endswith("\n") else " "
    yield "    " + (visible(prompt, keep="\n") + separator + answer).replace("\n", "\n    ")
