"""The options of `atoll eval` that say who else answers, and what that may cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.errors import UsageError

if TYPE_CHECKING:
    from atoll.evaluation.contenders import Contender
    from atoll.evaluation.spending import RemoteOptions

Output = Annotated[Path | None, typer.Option(help="Folder for answers and report; runs/<fleet>/eval unless given.")]
Adapters = Annotated[list[str] | None, typer.Option(help="Only this adapter, NAME or NAME@REVISION; may be repeated.")]
Against = Annotated[
    list[str] | None,
    typer.Option(metavar="WHO", help="Also few-shot:K, openai:MODEL or http://HOST/v1#MODEL; may be repeated."),
]
Concurrency = Annotated[int, typer.Option(min=1, max=256, help="Requests at once to each remote contender.")]
MaxUsd = Annotated[
    float | None, typer.Option(min=0, help="Stop before remote contenders could cost more dollars than this.")
]
InputPrice = Annotated[
    float | None, typer.Option("--usd-per-million-input", min=0, help="Price of a model that no table lists.")
]
OutputPrice = Annotated[
    float | None, typer.Option("--usd-per-million-output", min=0, help="The same for the tokens that it writes.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Ask everything again, also what an earlier run has.")]
Forgetting = Annotated[
    bool, typer.Option("--forgetting/--no-forgetting", help="Measure what tuning cost on general prompts.")
]
Transfer = Annotated[
    int, typer.Option(min=0, metavar="N", help="Let every adapter answer N examples of every task, too.")
]


def contenders(texts: Sequence[str] | None) -> tuple[Contender, ...]:
    """Those that `--against` names. Raises UsageError."""
    from atoll.evaluation.contenders import parse_contenders

    return parse_contenders(texts or ())


def remote_options(
    concurrency: int, max_usd: float | None, usd_input: float | None, usd_output: float | None
) -> RemoteOptions:
    """How remote contenders are asked. Raises UsageError for amounts that make no price."""
    from atoll.evaluation.spending import RemoteOptions, TokenRate

    if (usd_input is None) != (usd_output is None):
        mend = "give both --usd-per-million-input and --usd-per-million-output"
        raise UsageError("half a price is given", where="--usd-per-million-*", mend=mend)
    if not all(math.isfinite(value) for value in (max_usd, usd_input, usd_output) if value is not None):
        raise UsageError("an amount of dollars is no finite number", where="--max-usd, --usd-per-million-*")
    unlisted = None if usd_input is None or usd_output is None else TokenRate(usd_input, usd_output)
    return RemoteOptions(concurrency=concurrency, max_usd=max_usd, unlisted=unlisted)
