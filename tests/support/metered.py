"""A server with keys in a process of its own, over an engine that makes its tokens up: to be harmed by tests."""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import uvicorn

from atoll.adapters.catalog import AdapterCatalog
from atoll.adapters.store import AdapterStore
from atoll.model.load import load_base
from atoll.server.app import create_app
from atoll.server.keys.accounts import Accounts
from atoll.server.keys.database import Database, database_url
from atoll.server.settings import ServerSettings
from support.stub import StubEngine


@dataclass
class Metered:
    """A server in a process of its own."""

    url: str
    process: BaseProcess

    def kill(self) -> None:
        """kill -9; nothing of it runs any more when this returns."""
        self.process.kill()
        self.process.join()

    @contextmanager
    def full_disk(self, max_file_bytes: int) -> Iterator[None]:
        """No file of the server grows beyond so many bytes."""
        assert self.process.pid is not None
        unlimited = resource.RLIM_INFINITY
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (max_file_bytes, unlimited))
        yield
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))


@contextmanager
def metered_server(base_folder: Path, folder: Path, settings: ServerSettings | None = None) -> Iterator[Metered]:
    """Killed at the end at the latest. In `folder` are its database, journals and store; it is an adapter root, too."""
    processes = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:
        # What is preloaded is found by this alone: a fork of it serves in a moment, a new process would import long.
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        processes.set_forkserver_preload(["support.metered"])
        here, there = processes.Pipe()
        process = processes.Process(target=_serve, args=(base_folder, folder, there, settings), daemon=True)
        process.start()
    there.close()
    server = Metered(here.recv(), process)
    try:
        yield server
    finally:
        server.kill()


def _serve(base_folder: Path, folder: Path, connection: Connection, settings: ServerSettings | None) -> None:
    """Sends its address when it listens."""
    base = load_base(str(base_folder), device="cpu", dtype="float32")
    database = Database(database_url(str(folder / "atoll.db")))
    listener = socket.create_server(("127.0.0.1", 0))
    catalog = AdapterCatalog(AdapterStore(folder / "store"), [folder])
    with Accounts(database, folder / "journals", fold_s=0.05) as accounts, StubEngine() as engine:
        app = create_app(engine, base, catalog, settings=settings, accounts=accounts)
        connection.send(f"http://127.0.0.1:{listener.getsockname()[1]}")
        uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")).run(sockets=[listener])
