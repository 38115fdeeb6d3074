"""The `atoll` command: registers the subcommands and turns every error into one clear message and an exit code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from atoll import __version__
from atoll.cli.chat import chat
from atoll.cli.check import check
from atoll.cli.completion import completion
from atoll.cli.cost import cost
from atoll.cli.demo import demo
from atoll.cli.doctor import doctor
from atoll.cli.ending import run_to_its_end
from atoll.cli.eval import evaluate
from atoll.cli.export import export
from atoll.cli.garbage import collect_seldom
from atoll.cli.grouped import GroupedCommands
from atoll.cli.import_ import import_
from atoll.cli.init import init
from atoll.cli.keys import keys
from atoll.cli.ls import ls
from atoll.cli.ps import ps
from atoll.cli.pull import pull
from atoll.cli.push import push
from atoll.cli.report import report
from atoll.cli.rm import rm
from atoll.cli.run import run
from atoll.cli.schema import schema
from atoll.cli.serve import serve
from atoll.cli.show import show
from atoll.cli.tasks import tasks
from atoll.cli.tune import tune

app = typer.Typer(
    name="atoll",
    cls=GroupedCommands,
    help="Tune, evaluate and serve many small LoRA specialists on one base model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 internal, 2 usage, 3 config or data, 4 not found, 5 incompatible, 6 over budget, "
    "130 interrupted, 141 broken pipe.",
)
for command in (check, tune, serve, run, ls, ps, schema, demo):
    app.command()(command)
for command in (init, chat, show, rm, export, push, pull, doctor, completion):
    app.command()(command)
app.command()(cost)
app.command()(report)
app.command("eval")(evaluate)
app.command("import")(import_)
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
    """Run the command line and exit.

    Exit codes: 0 done, 1 internal, 2 usage, 3 config or data, 4 not found, 5 incompatible, 6 over budget,
    130 interrupted (Ctrl-C), 141 broken pipe (the reader of our output has gone). An error is one message on stderr;
    with ATOLL_DEBUG=1 an unexpected one comes with its traceback (and exit code 1).
    """
    collect_seldom()
    sys.exit(run_to_its_end(app, sys.argv[1:]))
