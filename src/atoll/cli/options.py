"""The options that several commands have, so that they have one name and one meaning everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atoll.cli.completion import adapter_ids, fleet_files
from atoll.cli.loading import DType

Store = Annotated[
    Path | None, typer.Option("--store", envvar="ATOLL_STORE", help="The folder that holds the adapters.")
]
Fleet = Annotated[Path, typer.Argument(help="The fleet file (YAML).", autocompletion=fleet_files, show_default=False)]
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder with <task>/<split>.jsonl.gz (or .csv, .parquet) to read instead.")
]
AdapterId = Annotated[
    str,
    typer.Argument(
        metavar="ADAPTER",
        help="Name or name@revision, as in `atoll ls`.",
        autocompletion=adapter_ids,
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Base = Annotated[
    str | None,
    typer.Option("--base-model", help="Hub id, folder, .gguf file or alias; the adapter's own unless given."),
]
Numbers = Annotated[
    DType, typer.Option("--dtype", help="Numbers to compute with; auto: bfloat16 where the machine has it.")
]
Url = Annotated[str | None, typer.Option("--url", envvar="ATOLL_URL", help="The address of a running server.")]
Key = Annotated[str | None, typer.Option("--key", envvar="ATOLL_KEY", help="A key of that server, if it has keys.")]
