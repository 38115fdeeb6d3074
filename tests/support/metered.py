"""A server with keys in a process of its own, over an engine that makes its tokens up: to be killed by tests."""

from __future__ import annotations

import socket
from multiprocessing.connection import Connection
from pathlib import Path

import uvicorn

from atoll.model.load import load_base
from atoll.server.app import create_app
from atoll.server.keys.accounts import Accounts
from atoll.server.keys.database import Database, database_url
from support.stub import StubEngine, empty_catalog


def serve_metered(base_folder: Path, folder: Path, connection: Connection) -> None:
    """Runs until it is killed; sends its address when it listens. The database and the journals lie in `folder`."""
    base = load_base(str(base_folder), device="cpu", dtype="float32")
    database = Database(database_url(str(folder / "atoll.db")))
    listener = socket.create_server(("127.0.0.1", 0))
    with Accounts(database, folder / "journals", fold_s=0.05) as accounts, StubEngine() as engine:
        app = create_app(engine, base, empty_catalog(folder), accounts=accounts)
        connection.send(f"http://127.0.0.1:{listener.getsockname()[1]}")
        uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")).run(sockets=[listener])
