"""The server process: its socket, its words, its signals and its end."""

from __future__ import annotations

import gc
import ipaddress
import json
import resource
import shlex
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import uvicorn

from atoll.cli.garbage import collect_as_usual
from atoll.errors import UsageError
from atoll.log import get_logger
from atoll.server.connections import protocol_for

if TYPE_CHECKING:
    from fastapi import FastAPI

    from atoll.adapters.store import StoredAdapter
    from atoll.engine import Engine
    from atoll.model.load import BaseModel
    from atoll.server.access import Lifecycle
    from atoll.server.settings import ServerSettings

logger = get_logger(__name__)

_MAX_LISTED = 20
_OTHER_FILES = 256  # of the model, the adapters, the journal, the database
_ACCEPTED_AT_ONCE = 16
_POLL_S = 0.05
_LAST_WORDS_S = 2  # for the error events of requests that were cut short


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises UsageError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"no address {host!r}", why=str(error), mend="use --host 127.0.0.1") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _cannot_listen(f"{host}:{port}", error) from None
    return listener


def _cannot_listen(where: str, error: OSError) -> UsageError:
    return UsageError(
        f"cannot listen on {where}",
        why=error.strerror,
        mend="stop what listens there, or choose another port with --port (0 takes a free one)",
    )


class _Server(uvicorn.Server):
    """Says when it listens; on SIGTERM takes nothing new, and lets what runs come to its end."""

    def __init__(
        self, config: uvicorn.Config, words: str, lifecycle: Lifecycle, engine: Engine, drain_s: float
    ) -> None:
        super().__init__(config)
        self._words = words
        self._lifecycle = lifecycle
        self._engine = engine
        self._drain_s = drain_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._words, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """The port stays open while requests run: readiness says no there, and stray requests get a clear answer."""
        self._lifecycle.is_draining = True
        until_s = time.monotonic() + self._drain_s
        while self._lifecycle.num_running and time.monotonic() < until_s and not self.force_exit:
            await anyio.sleep(_POLL_S)
        if self._lifecycle.num_running:
            logger.warning("%d requests are cut short: the server is stopping", self._lifecycle.num_running)
            await anyio.to_thread.run_sync(self._engine.close)
        await super().shutdown(sockets)


def run_server(
    app: FastAPI,
    listener: socket.socket,
    words: str,
    settings: ServerSettings,
    lifecycle: Lifecycle,
    *,
    engine: Engine,
    drain_s: float,
) -> None:
    """Serve until SIGINT or SIGTERM; running requests then have `drain_s` seconds, or until a second SIGINT."""
    settings = _with_files_for(settings)
    config = uvicorn.Config(
        app,
        http=protocol_for(settings),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )
    # A full collection looks at every object that loading has made, for some tenths of a second in which nobody is
    # answered; they are there for good, so it need not look at them again.
    gc.collect()
    gc.freeze()
    collect_as_usual()
    # libuv accepts one connection of a socket before it goes round all open ones again: the last of many that come at
    # once would wait for hundreds of answers to others.
    listeners = [listener, *(listener.dup() for _ in range(_ACCEPTED_AT_ONCE - 1))]
    # uvicorn raises a signal again once it has stopped, to whoever handled it before: then nothing is left to do.
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _Server(config, words, lifecycle, engine, drain_s).run(sockets=listeners)
    except OSError as error:  # somebody took the port while the model was loading
        raise _cannot_listen(f"port {listener.getsockname()[1]}", error) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _with_files_for(settings: ServerSettings) -> ServerSettings:
    """The settings with no more connections than this process may have files open; asks for as many as it needs."""
    wanted = settings.max_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft >= wanted:
        return settings
    max_connections = max(_OTHER_FILES, soft - _OTHER_FILES)
    logger.warning("at most %d connections: this process may have %d files open", max_connections, soft)
    return replace(settings, max_connections=max_connections)


def banner(
    base: BaseModel, store: Path, adapters: Sequence[StoredAdapter], listener: socket.socket, *, has_keys: bool
) -> str:
    """What stands on the screen once the server listens."""
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    fitting = [a for a in adapters if a.contract is None or a.contract.base.digest == base.digest]
    lines = [
        f"base model {base.name}: {base.num_params / 1e6:.0f}M parameters, {str(base.dtype)[6:]} on {base.device}",
        f"adapters in {store}: {len(fitting) or 'none'}",
        *(f"  {a.id:<24} {a.contract.description if a.contract else ''}".rstrip() for a in fitting[:_MAX_LISTED]),
    ]
    if len(fitting) > _MAX_LISTED:
        lines.append(f"  ... and {len(fitting) - _MAX_LISTED} more: atoll ls")
    if len(fitting) < len(adapters):
        lines.append(f"  ({len(adapters) - len(fitting)} more belong to other base models)")
    lines += [f"listening on {address}", "", _example(address, fitting, has_keys=has_keys), "", "stop with Ctrl-C"]
    if not has_keys:
        is_public = not ipaddress.ip_address(host.partition("%")[0]).is_loopback
        who = "warning: whoever reaches this address" if is_public else "whoever is on this machine"
        lines.append(f"{who} can use and administer it: there are no keys")
    return "\n".join(lines)


def _example(address: str, adapters: Sequence[StoredAdapter], *, has_keys: bool) -> str:
    """A command to copy that asks an adapter, one with a template if there is any."""
    body: dict[str, object] = {"inputs": "Hello", "parameters": {"max_new_tokens": 20}}
    if adapters:
        adapter = next((a for a in adapters if a.contract), adapters[0])
        inputs = dict.fromkeys(adapter.contract.prompt.columns, "...") if adapter.contract else "Hello"
        body = {"inputs": inputs, "parameters": {"adapter_id": adapter.name}}
    key = ' -H "Authorization: Bearer $ATOLL_KEY"' if has_keys else ""
    content = shlex.quote(json.dumps(body))
    return f"  curl {address}/generate -H 'Content-Type: application/json'{key} -d {content}"
