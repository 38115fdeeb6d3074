"""`atoll chat`: a conversation with adapters and the base on the terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli.completion import adapter_ids
from atoll.cli.options import Base, Key, Numbers, Store, Url
from atoll.cli.output import plain

if TYPE_CHECKING:
    from atoll.cli.chat_session import Session, Speaker
    from atoll.cli.loading import DType

_NUM_SLOTS = 4
_MAX_HISTORY_LINES = 1000


def chat(
    adapter: Annotated[
        str | None,
        typer.Argument(
            metavar="[ADAPTER]", help="Who answers first; the base model unless given.", autocompletion=adapter_ids
        ),
    ] = None,
    url: Url = None,
    key: Key = None,
    store: Store = None,
    base_model: Base = None,
    dtype: Numbers = "auto",
) -> None:
    """Talk to adapters and to their base model; `/use NAME` changes who answers, `/help` shows the other commands.

    With --url a running server answers, else an engine that is started here. Lines may also be piped in.

    Example: atoll chat sentiment
    """
    from atoll.cli.chat_session import Session

    with _speaker(adapter, url, key, store, base_model, dtype) as speaker:
        session = Session(speaker, say=_note)
        if adapter is not None:
            session.persona = speaker.persona(adapter)
        with _terminal(speaker):
            if sys.stdin.isatty():
                inputs = ", ".join(session.persona.columns)
                _note(f"talking to {session.name}{f', which takes {inputs}' if inputs else ''}; /help shows commands")
            _converse(session)


@contextmanager
def _speaker(
    adapter: str | None, url: str | None, key: str | None, store: Path | None, base_model: str | None, dtype: DType
) -> Iterator[Speaker]:
    from atoll.cli.chat_speakers import MAX_RANK, LocalSpeaker, ServerSpeaker

    if url is not None:
        yield ServerSpeaker(url, key)
        return
    from atoll.adapters.catalog import AdapterCatalog
    from atoll.cli.loading import load_base_for, open_store
    from atoll.engine import EngineConfig, build_engine

    catalog = AdapterCatalog(open_store(store))
    stored = [catalog.resolve(adapter)] if adapter is not None else []
    base = load_base_for(stored, base_model, dtype)
    with build_engine(base, num_slots=_NUM_SLOTS, max_rank=MAX_RANK, config=EngineConfig(max_num_requests=1)) as engine:
        yield LocalSpeaker(base, engine, catalog)


def _converse(session: Session) -> None:
    """Read and answer until the end. Ctrl-C takes back what is being typed, or stops what is being answered."""
    from atoll.errors import AtollError

    while not session.is_over:
        try:
            first = f" {session.persona.columns[0]}" if len(session.persona.columns) > 1 else ""
            line = _read(f"{session.name}{first}> ")
            if line.startswith("/"):
                session.command(line)
            elif line.strip():
                _answer(session, line)
        except EOFError:
            return
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            _note("(Ctrl-D or /quit to leave)")
        except AtollError as error:
            _note(f"error: {error}")


def _answer(session: Session, line: str) -> None:
    columns = None
    if session.persona.columns:
        first, *others = session.persona.columns
        columns = {first: line} | {name: _read(f"{name}: ") for name in others}
    num_pieces, start_s = 0, time.monotonic()
    said = line if columns is None else "\n".join(columns.values())
    try:
        with closing(session.answer(said, columns)) as answer:
            for piece in answer:
                num_pieces += 1
                print(plain(piece, keep="\n\t"), end="", flush=True)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        print(" (stopped)", end="")
    finally:
        print(flush=True)
    seconds = time.monotonic() - start_s
    if sys.stdout.isatty():
        _note(f"({num_pieces} pieces in {seconds:.1f} s, {num_pieces / max(seconds, 1e-9):.0f} a second)")


def _read(prompt: str) -> str:
    """One line, or several that end in a backslash. Raises EOFError."""
    lines = [_line(prompt)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(_line("... "))
    return "\n".join(lines)


def _line(prompt: str) -> str:
    return input(prompt if sys.stdin.isatty() else "")


def _note(text: str) -> None:
    """What the program says, beside the answers: on stderr, so that piped answers stay alone."""
    in_color = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    text = plain(text, keep="\n")
    print(typer.style(text, dim=True) if in_color else text, file=sys.stderr, flush=True)


@contextmanager
def _terminal(speaker: Speaker) -> Iterator[None]:
    """On a terminal: editing, completion by Tab, and a history that outlives the program."""
    if not sys.stdin.isatty():
        yield
        return
    import readline

    from atoll.adapters.names import default_store_root

    path = default_store_root().parent / "chat_history"
    names = speaker.adapter_ids()
    words = ["/use ", "/base", "/adapters", "/system ", "/reset", "/params ", "/save ", "/help", "/quit"]

    def complete(text: str, state: int) -> str | None:
        begun = readline.get_line_buffer()
        choices = names if begun.startswith("/use ") else words if begun.startswith("/") else []
        found = [choice for choice in choices if choice.startswith(text)]
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(_MAX_HISTORY_LINES)
    if path.is_file():
        readline.read_history_file(path)
    try:
        yield
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # what was typed is nobody else's business
        readline.write_history_file(path)
