"""A real PostgreSQL on a socket in a temporary folder, from the machine's own packages."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.servers import wait_until

_USERS = ("postgres", "nobody")


def binaries() -> Path:
    """The folder with initdb and postgres; skips the test where there is none."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if found := shutil.which("initdb"):
        candidates.insert(0, Path(found).resolve().parent)
    for folder in candidates:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    pytest.skip("no PostgreSQL on this machine: scripts/debian-tools installs it (make test runs it)")


def _user() -> str | None:
    """PostgreSQL refuses to run as root; who runs it then."""
    if os.geteuid() != 0:
        return None
    for name in _USERS:
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    pytest.skip("root cannot run PostgreSQL, and there is no user postgres or nobody")


class Postgres:
    """A server that a test may stop, kill and start again; `url` is Atoll's."""

    def __init__(self, folder: Path) -> None:
        self._binaries = binaries()
        self._user = _user()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()
        self.url = f"postgresql://atoll@/postgres?host={folder}"
        if self._user is not None:
            shutil.chown(folder, self._user)
        initdb = [self._binaries / "initdb", "-D", folder / "data", "-U", "atoll", "-A", "trust", "-E", "UTF8", "-N"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=folder, user=self._user)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = {"listen_addresses": "", "unix_socket_directories": self._folder, "fsync": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._folder / "data", *options],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                user=self._user,
            )
        wait_until(self._answers, timeout_s=60)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT breaks all connections, SIGQUIT does not even tidy up."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(timeout=60)
        self._process = None

    def new_database(self) -> str:
        """The URL of one more database, an empty one."""
        name = f"test{next(self._numbers)}"
        command = [self._binaries / "createdb", "-h", self._folder, "-U", "atoll", name]
        subprocess.run(command, check=True)
        return f"postgresql://atoll@/{name}?host={self._folder}"

    def close(self) -> None:
        """Stop it if it runs."""
        if self._process is not None:
            self.stop(signal.SIGQUIT)

    def _answers(self) -> bool:
        command = [self._binaries / "pg_isready", "-q", "-h", self._folder]
        return subprocess.run(command, check=False).returncode == 0


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A new, empty one."""
    # Not pytest's folder: the path of a socket has at most 107 bytes, and another user must get there.
    with tempfile.TemporaryDirectory(prefix="atoll-pg-") as folder:
        postgres = Postgres(Path(folder))
        try:
            postgres.start()
            yield postgres
        finally:
            postgres.close()
