"""What commands print: tables with rules and colours on a terminal, plain columns where a program reads."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Column(NamedTuple):
    """A table's column. is_number: stands to the right. folds: may be broken into lines on a narrow terminal."""

    name: str
    is_number: bool = False
    folds: bool = True


def print_json(fields: Mapping[str, Any]) -> None:
    """One JSON object on one line, at once: whoever reads a long run sees each as it comes."""
    print(json.dumps(fields, ensure_ascii=False), flush=True)


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; cells are shown without what could steer the terminal."""
    cells = [[plain(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(columns, cells)
        return
    lines = [[column.name for column in columns], *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        padded = [
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        print("  ".join(padded).rstrip())


def plain(text: str, keep: str = "") -> str:
    """Text without what could steer a terminal, but for the letters in `keep`: others gave adapters their names."""
    return "".join(letter if letter.isprintable() or letter in keep else "?" for letter in text)


def size_text(num_bytes: float) -> str:
    """A size for a reader, such as 4.7 MiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 1024 or unit == "GiB":
            break
        num_bytes /= 1024
    return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"


def fields_lines(fields: Mapping[str, str], width: int = 12) -> list[str]:
    """`name:  text` lines, with the further lines of a text below its first; fields without a text are left out."""
    return [
        f"{name + ':':<{width}}" + plain(text.rstrip("\n"), keep="\n").replace("\n", "\n" + width * " ")
        for name, text in fields.items()
        if text
    ]


def _print_rich(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        justify: Any = "right" if column.is_number else "left"
        table.add_column(column.name, justify=justify, no_wrap=not column.folds, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)
