"""`atoll schema`: print the JSON Schema of a file format."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


def schema(
    kind: Annotated[Literal["fleet", "task"], typer.Argument(help="Which file the schema describes.")],
) -> None:
    """Print the JSON Schema of fleet or task files, for an editor's completion and checks.

    Example: atoll schema fleet > fleet.schema.json
    """
    import json

    from atoll.config.schema import json_schema

    typer.echo(json.dumps(json_schema(kind), indent=2, ensure_ascii=False))
