"""`atoll run`: prompt one adapter, without a server."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.completion import adapter_ids
from atoll.cli.options import Base, Numbers, Store
from atoll.cli.output import plain, print_json

if TYPE_CHECKING:
    from atoll.adapters.catalog import AdapterCatalog
    from atoll.adapters.store import StoredAdapter
    from atoll.engine import Engine, FinishEvent, Request
    from atoll.model.load import BaseModel
    from atoll.server.prepare import Ask
    from atoll.server.prompts import Prompt

BASE = "base"
_MAX_RANK = 256


def run(
    adapter: Annotated[
        str,
        typer.Argument(
            help="Name, name@revision or PEFT folder; `base` for the bare base model.",
            autocompletion=adapter_ids,
            show_default=False,
        ),
    ],
    text: Annotated[
        str | None, typer.Argument(help="The text to answer; read from a pipe where absent.", show_default=False)
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="COLUMN=VALUE", help="One column of the adapter's template; repeat for more."),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Complete the text as it is, without any template.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="The most tokens of the answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes a sampled answer repeatable.")] = None,
    store: Store = None,
    base_model: Base = None,
    dtype: Numbers = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:
    """Prompt one adapter, without a server.

    Example: atoll run sentiment "a film of rare beauty"
    """
    from atoll.cli.loading import load_base_for
    from atoll.server.prepare import Ask

    catalog, adapter_id, source = _find(adapter, store)
    stored = catalog.resolve(adapter_id, source) if adapter_id else None
    given = _given_columns(columns or ())
    if text is None and not given:
        text = _piped_text()
    prompt = _prompt(stored, adapter, text, given, raw=raw)
    base = load_base_for([stored] if stored else [], base_model, dtype)
    if isinstance(prompt, str) and stored is None and not raw and base.tokenizer.chat_template:
        prompt = [{"role": "user", "content": prompt}]
    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    ask = Ask(prompt=prompt, adapter_id=adapter_id, adapter_source=source, default_temperature=0.0, **sampling)
    finish = _answer(base, catalog, ask, show=not as_json)
    if as_json:
        print_json(_as_json(stored, finish))
    else:
        print()


def _find(adapter: str, store: Path | None) -> tuple[AdapterCatalog, str, str | None]:
    """A catalog, and how it knows the adapter: by id and source; no id for the bare base."""
    from atoll.adapters.catalog import AdapterCatalog
    from atoll.cli.loading import open_store

    if adapter == BASE:
        return AdapterCatalog(open_store(store)), "", None
    folder = Path(adapter)
    if ("/" in adapter or adapter.startswith(".")) and folder.is_dir():
        return AdapterCatalog(open_store(store), [folder.resolve().parent]), folder.resolve().name, "local"
    return AdapterCatalog(open_store(store)), adapter, None


def _given_columns(pairs: Sequence[str]) -> dict[str, str]:
    from atoll.errors import UsageError

    columns = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--input {pair!r} has no column's name", mend="write --input column=value")
        columns[name] = value
    return columns


def _piped_text() -> str:
    from atoll.errors import UsageError

    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("there is no text to answer", mend='give it: atoll run ADAPTER "text"')
    return sys.stdin.read()


def _prompt(
    stored: StoredAdapter | None, adapter: str, text: str | None, columns: dict[str, str], *, raw: bool
) -> Prompt:
    """The columns of the adapter's template, or text for the base and for adapters that have no template."""
    from atoll.errors import UsageError

    contract = stored.contract if stored else None
    if columns:
        if text is not None or raw:
            raise UsageError("--input fills the adapter's template", mend="leave out the text and --raw")
        return columns
    text = text or ""
    if contract is None or raw:
        return text
    needed = contract.prompt.columns
    if len(needed) > 1:
        inputs = " ".join(f'--input {name}="..."' for name in needed)
        raise UsageError(
            f"{adapter} has {len(needed)} input columns: {', '.join(needed)}",
            why="one text cannot fill them all",
            mend=f"atoll run {adapter} {inputs}",
        )
    return {needed[0]: text}


def _answer(base: BaseModel, catalog: AdapterCatalog, ask: Ask, *, show: bool) -> FinishEvent:
    """Start an engine for one request; its text goes to stdout while it comes. Raises the request's AtollError."""
    from atoll.engine import EngineConfig, build_engine
    from atoll.engine.request import ignore
    from atoll.server.caller import ANYBODY
    from atoll.server.prepare import Preparer
    from atoll.server.settings import ServerSettings

    with build_engine(base, num_slots=1, max_rank=_MAX_RANK, config=EngineConfig(max_num_requests=1)) as engine:
        preparer = Preparer(base, catalog, ServerSettings(), max_length=engine.max_length, max_rank=_MAX_RANK)
        prepared = preparer.prepare(ask, ANYBODY)
        if prepared.num_cut_tokens:
            print(f"note: {prepared.num_cut_tokens} tokens of the longest column were cut", file=sys.stderr)
        return _stream(engine, prepared.request(0, ANYBODY, ignore), show=show)


def _stream(engine: Engine, request: Request, *, show: bool) -> FinishEvent:
    from dataclasses import replace
    from queue import SimpleQueue

    from atoll.engine import ErrorEvent, Event, FinishEvent

    events: SimpleQueue[Event] = SimpleQueue()
    engine.submit(replace(request, on_event=events.put))
    while True:
        event = events.get()
        if isinstance(event, ErrorEvent):
            raise event.error
        if isinstance(event, FinishEvent):
            return event
        if show:
            print(plain(event.text, keep="\n\t") if sys.stdout.isatty() else event.text, end="", flush=True)


def _as_json(stored: StoredAdapter | None, finish: FinishEvent) -> dict[str, object]:
    return {
        "adapter": stored.id if stored else BASE,
        "text": finish.text,
        "finish_reason": finish.finish_reason,
        "num_prompt_tokens": finish.num_prompt_tokens,
        "num_new_tokens": len(finish.token_ids),
        "seed": finish.seed,
        "seconds": round(finish.timings.total_s, 4),
    }
