"""`atoll serve`: answer for the base model and all its adapters over HTTP."""

from __future__ import annotations

import ipaddress
import json
import shlex
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from atoll.cli.loading import DType

if TYPE_CHECKING:
    from fastapi import FastAPI

    from atoll.adapters.store import StoredAdapter
    from atoll.errors import UsageError
    from atoll.model.load import BaseModel

DRAIN_S = 10
_MAX_LISTED = 20

BaseModelName = Annotated[
    str | None, typer.Option(help="Hub id, folder, .gguf file or alias; the adapters' own unless given.")
]
StoreFolder = Annotated[Path | None, typer.Option(envvar="ATOLL_STORE", help="The folder that holds the adapters.")]
AdapterRoots = Annotated[
    list[Path] | None,
    typer.Option(help="A folder below which PEFT folders may be named by path; repeat for more."),
]
Number = Annotated[DType, typer.Option(help="Numbers to compute with; auto: bfloat16 where the machine has it.")]
MaxLength = Annotated[
    int | None, typer.Option(min=1, help="Tokens of a prompt and its answer; the base model's own unless given.")
]
MaxOpenRequests = Annotated[int, typer.Option(min=1, help="Requests that run or wait; one more is answered with 429.")]
Int8 = Annotated[
    bool, typer.Option("--int8", help="Compute the base's linear layers in 8 bits: less memory, faster on a CPU.")
]
KVCacheBytes = Annotated[
    int | None, typer.Option(min=1, help="Memory of the KV cache; a share of what is free unless given.")
]
HostAdapterBytes = Annotated[
    int | None, typer.Option(min=1, help="Memory for adapters beside the slots; a share of what is free unless given.")
]
PrefixCache = Annotated[bool, typer.Option(help="Compute equal beginnings of prompts once (per tenant and adapter).")]


def serve(
    base_model: BaseModelName = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")] = 3000,
    store: StoreFolder = None,
    adapter_root: AdapterRoots = None,
    dtype: Number = "auto",
    num_slots: Annotated[int, typer.Option(min=1, help="Adapters on the device at once.")] = 8,
    max_rank: Annotated[int, typer.Option(min=1, help="The largest rank of an adapter.")] = 64,
    max_batch_tokens: Annotated[int, typer.Option(min=1, help="The token budget of one step.")] = 512,
    max_num_requests: Annotated[int, typer.Option(min=1, help="Requests that run at once.")] = 32,
    max_length: MaxLength = None,
    int8: Int8 = False,
    kv_cache_bytes: KVCacheBytes = None,
    host_adapter_bytes: HostAdapterBytes = None,
    prefix_cache: PrefixCache = True,
    max_open_requests: MaxOpenRequests = 256,
) -> None:
    """Answer for the base model and all its adapters over HTTP, in LoRAX's dialect and in OpenAI's.

    Example: atoll serve --port 3000
    """
    from atoll.adapters.catalog import AdapterCatalog
    from atoll.cli.loading import load_base_for, open_store
    from atoll.engine import EngineConfig, build_engine
    from atoll.log import setup_logging
    from atoll.server.app import create_app
    from atoll.server.settings import ServerSettings

    setup_logging()
    with _listen(host, port) as listener:  # before the model is loaded: a port in use should not cost a minute
        opened = open_store(store)
        catalog = AdapterCatalog(opened, _checked_roots(adapter_root or ()))
        base = load_base_for(catalog.list(), base_model, dtype)
        config = EngineConfig(
            max_batch_tokens=max_batch_tokens,
            max_num_requests=max_num_requests,
            max_length=max_length,
            kv_cache_bytes=kv_cache_bytes,
            host_adapter_bytes=host_adapter_bytes,
            prefix_cache=prefix_cache,
        )
        bits: Literal[8] | None = 8 if int8 else None
        with build_engine(base, num_slots=num_slots, max_rank=max_rank, bits=bits, config=config) as engine:
            app = create_app(engine, base, catalog, settings=ServerSettings(max_open_requests=max_open_requests))
            _run(app, listener, _banner(base, opened.root, catalog.list(), listener))


def _listen(host: str, port: int) -> socket.socket:
    from atoll.errors import UsageError

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
    from atoll.errors import UsageError

    return UsageError(
        f"cannot listen on {where}",
        why=error.strerror,
        mend="stop what listens there, or choose another port with --port (0 takes a free one)",
    )


def _checked_roots(roots: Sequence[Path]) -> list[Path]:
    from atoll.errors import UsageError

    for root in roots:
        if not root.is_dir():
            raise UsageError(f"--adapter-root {root} is not a folder")
    return list(roots)


def _run(app: FastAPI, listener: socket.socket, banner: str) -> None:
    """Serve until SIGINT or SIGTERM; running requests then have DRAIN_S seconds."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(banner, flush=True)

    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=DRAIN_S, lifespan="off")
    # uvicorn raises a signal again once it has stopped, to whoever handled it before: then nothing is left to do.
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        Server(config).run(sockets=[listener])
    except OSError as error:  # somebody took the port while the model was loading
        raise _cannot_listen(f"port {listener.getsockname()[1]}", error) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _banner(base: BaseModel, store: Path, adapters: Sequence[StoredAdapter], listener: socket.socket) -> str:
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
    lines += [f"listening on {address}", "", _example(address, fitting), "", "stop with Ctrl-C"]
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        lines.append("warning: there are no keys: whoever reaches this address can use it")
    return "\n".join(lines)


def _example(address: str, adapters: Sequence[StoredAdapter]) -> str:
    """A command to copy that asks an adapter, one with a template if there is any."""
    body: dict[str, object] = {"inputs": "Hello", "parameters": {"max_new_tokens": 20}}
    if adapters:
        adapter = next((a for a in adapters if a.contract), adapters[0])
        inputs = dict.fromkeys(adapter.contract.prompt.columns, "...") if adapter.contract else "Hello"
        body = {"inputs": inputs, "parameters": {"adapter_id": adapter.name}}
    content = shlex.quote(json.dumps(body))
    return f"  curl {address}/generate -H 'Content-Type: application/json' -d {content}"
