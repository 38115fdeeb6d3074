"""How a command ends: every error becomes one message on stderr and an exit code."""

from __future__ import annotations

import contextlib
import difflib
import os
import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper

import typer
from typer.main import get_command

from atoll import __version__
from atoll.cli.output import plain
from atoll.errors import AtollError, ConfigError, UsageError

DONE, INTERRUPTED, BROKEN_PIPE = 0, 130, 141
DEBUG_VARIABLE = "ATOLL_DEBUG"


def run_to_its_end(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code."""
    try:
        _write_what_the_terminal_cannot()
        _check(arguments)
        code = _invoke(app, arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return _close_stdout()
    except KeyboardInterrupt:
        # Threads may hold up the end of the process; a second Ctrl-C ends it at once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except typer.TyperException as error:
        return _tell_usage(error)
    except AtollError as error:
        return _tell(error)
    except OSError as error:
        return _tell_system(error)
    except UnicodeEncodeError:
        # Bytes of the command line that are no text: as a path they may be right, anywhere else they are not.
        return _tell(UsageError("an argument is not valid UTF-8", mend="check how the terminal is set"))
    except Exception as error:
        return _tell_unexpected(error)


def _invoke(app: typer.Typer, arguments: Sequence[str]) -> int:
    command = get_command(app)
    if "_ATOLL_COMPLETE" in os.environ:
        from atoll.cli.completion import complete

        return complete(command)
    try:
        # Not by calling the command: that would answer a broken pipe and Ctrl-C itself.
        with command.make_context("atoll", list(arguments)) as context:
            command.invoke(context)
    except typer.Exit as exit:
        return exit.exit_code
    except (typer.Abort, EOFError):
        raise KeyboardInterrupt from None
    return DONE


def _check(arguments: Sequence[str]) -> None:
    """Raise UsageError for arguments that no command can take."""
    if any("\0" in argument for argument in arguments):
        raise UsageError("an argument holds a NUL", why="no name and no path can")


def _write_what_the_terminal_cannot() -> None:
    """A letter that the terminal's encoding does not know is shown by its number, not answered with an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _tell(error: AtollError) -> int:
    """Errors quote what they are about, so what could steer the terminal is taken out."""
    print(plain(f"error: {error}", keep="\n"), file=sys.stderr)
    return error.exit_code


def _close_stdout() -> int:
    """The reader of our output has gone (as `head` does); there is nobody left to tell."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
    return BROKEN_PIPE


def _tell_usage(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if context is not None and message == context.get_help():
        print(message, file=sys.stderr)  # a group without a command shows what there is
        return error.exit_code
    mend = f"see `{context.command_path} --help`" if context is not None else None
    if possible := getattr(error, "possibilities", None):
        (closest,) = difflib.get_close_matches(getattr(error, "option_name", ""), possible, n=1, cutoff=0)
        mend = f"did you mean {closest}?"
    told = UsageError(message.partition(" (Possible options:")[0].rstrip("."), mend=mend)
    _tell(told)
    return error.exit_code


def _tell_system(error: OSError) -> int:
    """The machine refused something (a full disk, a folder that may not be written): no defect of ours."""
    if os.environ.get(DEBUG_VARIABLE):
        raise error
    told = ConfigError(
        error.strerror or str(error) or type(error).__name__,
        where=None if error.filename is None else str(error.filename)[:200],
        mend=f"see that it is there and may be used; {DEBUG_VARIABLE}=1 shows where it happened",
    )
    return _tell(told)


def _tell_unexpected(error: Exception) -> int:
    if os.environ.get(DEBUG_VARIABLE):
        raise error
    first_line = str(error).strip().partition("\n")[0][:300]
    told = AtollError(
        f"Atoll {__version__} failed: {type(error).__name__}" + (f": {first_line}" if first_line else ""),
        why="this is a defect of Atoll, not of what you did",
        mend=f"run it again with {DEBUG_VARIABLE}=1, and report the command with what it prints (CONTRIBUTING.md)",
    )
    return _tell(told)
