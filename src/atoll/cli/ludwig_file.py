"""What `check`, `tune` and `eval` do with a Ludwig file: say what has no effect, and take its data set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

Dataset = Annotated[
    Path | None, typer.Option("--dataset", help="For a Ludwig file: the data file that Ludwig was given.")
]


def as_fleet(fleet: Path, dataset: Path | None = None) -> Path:
    """The fleet file to work with: the given one, or, for a Ludwig file with a data set, its translation.

    The translation goes to `runs/<name of the file>`. Notes on keys without effect are printed on stderr. Raises
    ConfigError for a file that cannot be translated, UsageError for a data set without a Ludwig file.
    """
    from atoll.cli.init_files import plan_from_ludwig, write_plan
    from atoll.config.load import load_ludwig
    from atoll.errors import UsageError

    translation = load_ludwig(fleet)
    if translation is None:
        if dataset is not None:
            mend = "name the file in the task (`dataset:`), or the folder with --data-root"
            raise UsageError("--dataset goes with Ludwig files", where=str(fleet), mend=mend)
        return fleet
    for note in translation.notes:
        print(f"note: {note}", file=sys.stderr)
    if dataset is None:
        return fleet
    folder = Path("runs") / fleet.stem
    plan = plan_from_ludwig(fleet, folder, dataset, output=folder.as_posix())
    write_plan(plan, force=True)
    print(f"translated to {plan.fleet_path}", file=sys.stderr)
    return plan.fleet_path
