"""`atoll serve`: answer for the base model and all its adapters over HTTP."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from atoll.cli.serve_options import ServeOptions, takes

if TYPE_CHECKING:
    from atoll.engine import Engine
    from atoll.model.load import BaseModel
    from atoll.server.keys.accounts import Accounts
    from atoll.server.keys.hosts import HostRule
    from atoll.server.settings import ServerSettings
    from atoll.server.tracing import Tracing
    from atoll.server.ui.site import UiSettings


@takes(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Answer for the base model and all its adapters over HTTP, in LoRAX's dialect and in OpenAI's.

    Once there is a key (`atoll keys create`) every request needs one. Without keys only this machine is listened to.

    Example: atoll serve --port 3000
    """
    from atoll.cli.serving import banner, listen, run_server
    from atoll.log import setup_logging

    has_terminal = sys.stderr.isatty()
    json_lines = options.log_format == "json" or (options.log_format == "auto" and not has_terminal)
    setup_logging(json_lines=json_lines, others=("uvicorn",))
    # Before anything heavy: a port in use, or a database that is gone, should not cost a minute.
    with listen(options.host, options.port) as listener, _accounts(options) as accounts:
        hosts = _host_rule(options, listener.getsockname()[0], has_keys=accounts is not None)
        roots = _checked_roots(options.adapter_root or ())

        from atoll.adapters.catalog import AdapterCatalog
        from atoll.cli.loading import load_base_for, open_store
        from atoll.server.access import Lifecycle
        from atoll.server.app import create_app

        store = open_store(options.store)
        catalog = AdapterCatalog(store, roots)
        base = load_base_for(catalog.list(), options.base_model, options.dtype)
        settings = _settings(options)
        lifecycle = Lifecycle()
        with _engine(base, options) as engine, _tracing(options) as tracing:
            for adapter_id in options.pin or ():
                engine.pin(store.resolve(adapter_id))
            app = create_app(
                engine,
                base,
                catalog,
                settings=settings,
                accounts=accounts,
                hosts=hosts,
                lifecycle=lifecycle,
                tracing=tracing,
                ui=_ui(options, store.root),
            )
            words = banner(base, store.root, catalog.list(), listener, has_keys=accounts is not None)
            run_server(app, listener, words, settings, lifecycle, engine=engine, drain_s=options.drain_s)


def _ui(options: ServeOptions, store: Path) -> UiSettings | None:
    from atoll.server.ui.site import UiSettings

    return UiSettings(runs=options.runs, votes=store / "votes") if options.ui else None


def _settings(options: ServeOptions) -> ServerSettings:
    from atoll.server.settings import ServerSettings

    return ServerSettings(
        max_open_requests=options.max_open_requests,
        remote_sources=tuple(options.adapter_source or ()),
        adapter_hosts=tuple(options.adapter_host or ServerSettings.adapter_hosts),
        private_adapter_hosts=tuple(options.private_adapter_host or ()),
        adapter_buckets=tuple(options.adapter_bucket or ()),
        hub_endpoint=options.hub_endpoint,
        s3_endpoint=options.s3_endpoint,
        max_adapter_bytes=options.max_adapter_bytes,
        merge_timeout_s=options.merge_timeout_s,
        adapter_cache=options.adapter_cache,
    )


@contextmanager
def _tracing(options: ServeOptions) -> Iterator[Tracing | None]:
    """Where traces go, if anywhere; what is left of them is sent at the end."""
    if options.otlp_endpoint is None:
        yield None
        return
    from atoll.server.tracing import Tracing

    tracing = Tracing(options.otlp_endpoint)
    try:
        yield tracing
    finally:
        tracing.close()


def _engine(base: BaseModel, options: ServeOptions) -> Engine:
    from atoll.engine import EngineConfig, build_engine

    config = EngineConfig(
        max_batch_tokens=options.max_batch_tokens,
        max_num_requests=options.max_num_requests,
        max_length=options.max_length,
        kv_cache_bytes=options.kv_cache_bytes,
        host_adapter_bytes=options.host_adapter_bytes,
        prefix_cache=options.prefix_cache,
        cuda_graphs=options.cuda_graphs,
    )
    bits: Literal[8] | None = 8 if options.int8 else None
    return build_engine(base, num_slots=options.num_slots, max_rank=options.max_rank, bits=bits, config=config)


@contextmanager
def _accounts(options: ServeOptions) -> Iterator[Accounts | None]:
    """Keys and usage, running; None where nobody has made a key, or nobody shall need one."""
    from atoll.server.keys.accounts import Accounts
    from atoll.server.keys.database import Database, data_folder, database_url, exists
    from atoll.server.keys.keys import KeyStore

    url = database_url(options.database)
    if options.no_keys or not exists(url):
        yield None
        return
    database = Database(url)
    try:
        if not KeyStore(database).list():
            yield None
            return
        journals = options.usage_journal or data_folder() / "usage"
        price_usd = options.price_per_million_tokens
        with Accounts(database, journals, price_per_million_tokens_usd=price_usd) as accounts:
            yield accounts
    finally:
        database.close()


def _host_rule(options: ServeOptions, address: str, *, has_keys: bool) -> HostRule:
    """Which names are answered to without keys. Raises UsageError where strangers could come in unasked."""
    import ipaddress

    from atoll.errors import UsageError
    from atoll.server.keys.hosts import HostRule

    is_public = not ipaddress.ip_address(address.partition("%")[0]).is_loopback
    if is_public and not has_keys and not (options.no_keys and options.allow_public):
        raise UsageError(
            f"{options.host} can be reached from other machines, and there are no keys",
            why="whoever reaches it could use it",
            mend="make one with `atoll keys create`; or say twice that you mean it: --no-keys --allow-public",
        )
    return HostRule(options.allowed_host or (), any_address=is_public)


def _checked_roots(roots: Sequence[Path]) -> list[Path]:
    from atoll.errors import UsageError

    for root in roots:
        if not root.is_dir():
            raise UsageError(f"--adapter-root {root} is not a folder")
    return list(roots)
