"""A server that shows the page, over a tiny base: adapters of tasks that ship with Atoll, and others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.adapters.catalog import AdapterCatalog
from atoll.adapters.store import AdapterStore
from atoll.engine import Engine
from atoll.server.app import create_app
from atoll.server.keys.accounts import Accounts
from atoll.server.keys.database import Database, database_url
from atoll.server.keys.keys import KeyStore, NewKey
from atoll.server.ui.site import UiSettings
from atoll.tasks.task import find_task
from support.adapters import save_random_adapter
from support.engines import World, make_world
from support.servers import publish_contracts, serving, write_contract
from support.tiny import make_model

TASKS = ("glue_qnli", "support")
"""Tasks with a worked example, whose adapters the tiny base gets."""


@dataclass
class ShownSite:
    """A server with its page, and what stands behind it."""

    url: str
    engine: Engine
    world: World
    store: AdapterStore
    runs: Path
    votes: Path
    keys: KeyStore | None = None

    def key(self, **fields: Any) -> str:
        """A new key of a server with accounts; the server knows it within the blink of an eye."""
        assert self.keys is not None
        return self.keys.create(NewKey(**fields))[1]


def publish_tasks(world: World, store: AdapterStore, folder: Path) -> None:
    """Publish a random adapter for each of TASKS."""
    for seed, name in enumerate(TASKS, start=20):
        adapter = save_task_adapter(folder / name, world.base_folder, name, seed=seed)
        world.adapters[name] = store.publish(name, adapter)


def save_task_adapter(folder: Path, base_folder: Path, task_name: str, *, seed: int, **fields: Any) -> Path:
    """A random adapter with the contract that training for a built-in task would give it, or with other fields."""
    task = find_task(task_name)
    adapter = save_random_adapter(folder, make_model(), seed=seed)
    contract = {
        "task": task.name,
        "description": task.description,
        "licence": task.licence,
        "input_columns": task.input_columns,
        "target_column": task.target_column,
        "labels": task.labels,
        "max_length": 400,
    }
    write_contract(adapter, base_folder, folder.name, task.prompt.template, **contract | fields)
    return adapter


@contextmanager
def shown_site(folder: Path, *, with_keys: bool = False, **limits: Any) -> Iterator[ShownSite]:
    """Run a server with the page until the end of the block; with keys it has one already, so that it is closed."""
    world = make_world(folder)
    store = publish_contracts(world, folder)
    publish_tasks(world, store, folder)
    settings = UiSettings(runs=folder / "runs", votes=folder / "votes")
    with _accounts(folder, with_keys) as (keys, accounts), world.engine(**limits) as engine:
        catalog = AdapterCatalog(store, [folder])
        app = create_app(engine, engine.base, catalog, accounts=accounts, ui=settings)
        with serving(app) as url:
            yield ShownSite(url, engine, world, store, settings.runs, settings.votes, keys)


@contextmanager
def _accounts(folder: Path, with_keys: bool) -> Iterator[tuple[KeyStore | None, Accounts | None]]:
    if not with_keys:
        yield None, None
        return
    database = Database(database_url(str(folder / "atoll.db")))
    keys = KeyStore(database)
    keys.create(NewKey())
    with Accounts(database, folder / "journals", refresh_s=0.02, fold_s=0.02) as accounts:
        yield keys, accounts
    database.close()
