"""Real servers on free ports, and adapters with contracts for them to serve."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from atoll.adapters.catalog import AdapterCatalog
from atoll.adapters.contract import CONTRACT_NAME, AdapterContract, BaseRef
from atoll.adapters.store import AdapterStore
from atoll.config.task import GenerationConfig, PromptConfig
from atoll.engine import Engine
from atoll.model.source import resolve_base
from atoll.server.app import create_app
from atoll.server.keys.accounts import Accounts
from atoll.server.settings import ServerSettings
from support.adapters import save_random_adapter
from support.engines import World, make_world
from support.tiny import make_model

TEMPLATES = {
    "sentiment": "Is this positive or negative?\n{text}\nAnswer:",
    "compare": "First: {left}\nSecond: {right}\nWhich?",
}
MAX_NEW_TOKENS = 6


@dataclass
class Served:
    """A server and what stands behind it."""

    url: str
    engine: Engine
    world: World
    store: AdapterStore


def write_contract(folder: Path, base_folder: Path, name: str, template: str, **fields: Any) -> None:
    """Give a PEFT folder a contract, as training does."""
    base = resolve_base(str(base_folder))
    prompt = PromptConfig(template=template)
    contract = AdapterContract(
        name=name,
        base=BaseRef(name=base.name, digest=base.digest),
        task="test",
        description=f"the {name} task",
        prompt=prompt,
        chat=True,
        input_columns=prompt.columns,
        target_column="answer",
        max_length=64,
        generation=GenerationConfig(max_new_tokens=MAX_NEW_TOKENS),
    ).model_copy(update=fields)
    (folder / CONTRACT_NAME).write_text(contract.to_json())


def publish_contracts(world: World, folder: Path) -> AdapterStore:
    """Publish an adapter with a contract for each of TEMPLATES."""
    store = AdapterStore(folder / "store")
    for seed, (name, template) in enumerate(TEMPLATES.items(), start=10):
        adapter = save_random_adapter(folder / name, make_model(), seed=seed)
        write_contract(adapter, world.base_folder, name, template)
        world.adapters[name] = store.publish(name, adapter)
    return store


@contextmanager
def serving(app: Any, listener: socket.socket | None = None, **config: Any) -> Iterator[str]:
    """Run an ASGI application in a thread; yields its address."""
    listener = listener or socket.create_server(("127.0.0.1", 0))
    config = {"log_config": None, "access_log": False, "lifespan": "off", "timeout_graceful_shutdown": 5} | config
    server = uvicorn.Server(uvicorn.Config(app, **config))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()
        assert not thread.is_alive()


@contextmanager
def served_world(
    folder: Path, *, settings: ServerSettings | None = None, accounts: Accounts | None = None, **limits: Any
) -> Iterator[Served]:
    """A server over a tiny base with random adapters, four without a contract and two with one."""
    world = make_world(folder)
    store = publish_contracts(world, folder)
    with world.engine(**limits) as engine:
        app = create_app(engine, engine.base, AdapterCatalog(store, [folder]), settings=settings, accounts=accounts)
        with serving(app) as url:
            yield Served(url, engine, world, store)


def wait_until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Raise AssertionError unless `condition` holds in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


def samples(served: Served) -> dict[str, float]:
    """Every sample by its name and labels, parsed as Prometheus does."""
    text = httpx.get(f"{served.url}/metrics").text
    return {
        sample.name + "".join(f",{key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def read_events(body: str) -> list[Any]:
    """The data of server-sent events; `[DONE]` as that string."""
    contents = [line.removeprefix("data:").strip() for line in body.splitlines() if line.startswith("data:")]
    return [content if content == "[DONE]" else json.loads(content) for content in contents]
