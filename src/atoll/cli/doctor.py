"""`atoll doctor`: whether this machine is fit, and what to expect of it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli.options import AsJson, Store
from atoll.cli.output import fields_lines, plain, print_json

if TYPE_CHECKING:
    from atoll.cli.findings import Finding

_COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The port that a server shall have.")] = 3000,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Look at this machine: processor, GPU, memory, disks, versions, caches, settings; and say what to expect of it.

    Reads and measures for some seconds, changes nothing and asks no other machine. The exit code is 1 if anything
    failed.

    Example: atoll doctor --json
    """
    from atoll.adapters.names import default_store_root
    from atoll.cli.findings import examine

    findings = list(examine(port=port, store=store or default_store_root()))
    if as_json:
        counts = {state: sum(finding.state == state for finding in findings) for state in _COLORS}
        print_json(counts | {"findings": [finding._asdict() for finding in findings]})
    else:
        in_color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        for finding in findings:
            print("\n".join(_lines(finding, in_color=in_color)))
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


def _lines(finding: Finding, *, in_color: bool) -> list[str]:
    state = f"{finding.state:<5}"
    mark = typer.style(state, fg=_COLORS[finding.state]) if in_color else state
    (first, *others) = fields_lines({finding.name: finding.text})
    mend = [" " * 6 + plain(f"mend: {finding.mend}")] if finding.mend else []
    return [f"{mark} {first}", *(" " * 6 + line for line in others), *mend]
