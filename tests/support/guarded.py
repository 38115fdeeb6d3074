"""A server with keys, and with limits that tests can reach, over an engine that makes its tokens up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx

from atoll.model.load import BaseModel
from atoll.server.app import create_app
from atoll.server.connections import protocol_for
from atoll.server.keys.accounts import Accounts
from atoll.server.keys.database import Database, database_url
from atoll.server.keys.keys import KeyStore, NewKey
from atoll.server.settings import ServerSettings
from atoll.server.ui.site import UiSettings
from support.servers import serving, wait_until
from support.stub import StubEngine, empty_catalog


@dataclass
class Guarded:
    """A server with keys over a stub engine."""

    url: str
    keys: KeyStore
    engine: StubEngine
    app: Any

    def key(self, **fields: Any) -> dict[str, str]:
        """The header of a new key, once the server knows it."""
        _, shown = self.keys.create(NewKey(**fields))
        headers = {"Authorization": f"Bearer {shown}"}
        wait_until(lambda: httpx.get(f"{self.url}/v1/models", headers=headers).status_code != 401)
        return headers

    def id_of(self, headers: dict[str, str]) -> str:
        return headers["Authorization"].split("-")[1]


@contextmanager
def guarded_server(folder: Path, base: BaseModel) -> Iterator[Guarded]:
    """Its database has one key already, so that it is closed."""
    database = Database(database_url(str(folder / "atoll.db")))
    keys = KeyStore(database)
    keys.create(NewKey())
    settings = ServerSettings(body_timeout_s=0.3, head_timeout_s=0.3, max_header_bytes=4096, max_connections=20)
    with Accounts(database, folder / "journals", refresh_s=0.02, fold_s=0.02) as accounts, StubEngine() as engine:
        ui = UiSettings(runs=folder / "runs", votes=folder / "votes")
        app = create_app(engine, base, empty_catalog(folder), settings=settings, accounts=accounts, ui=ui)
        with serving(app, http=protocol_for(settings)) as url:
            yield Guarded(url, keys, engine, app)
    database.close()
