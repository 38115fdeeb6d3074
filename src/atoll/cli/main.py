"""The `atoll` command: registers the subcommands and turns every error into one clear message and an exit code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from atoll import __version__
from atoll.cli.check import check
from atoll.cli.demo import demo
from atoll.cli.eval import evaluate
from atoll.cli.keys import keys
from atoll.cli.ls import ls
from atoll.cli.ps import ps
from atoll.cli.run import run
from atoll.cli.schema import schema
from atoll.cli.serve import serve
from atoll.cli.tasks import tasks
from atoll.cli.tune import tune
from atoll.errors import AtollError

app = typer.Typer(
    name="atoll",
    help="Tune, evaluate and serve many small LoRA specialists on one base model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (check, tune, serve, run, ls, ps, schema, demo):
    app.command()(command)
app.command("eval")(evaluate)
app.add_typer(keys, name="keys")
app.add_typer(tasks, name="tasks")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"atoll {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 internal, 2 usage, 3 config or data, 4 not found, 5 incompatible."""
    try:
        app()
    except AtollError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone (as `head` does); there is nobody left to tell.
        sys.stderr.close()
        sys.exit(141)
