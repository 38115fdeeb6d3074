"""One database for keys and usage: SQLite by default, PostgreSQL by its URL."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, select, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from atoll.errors import Incompatible, Unavailable, UsageError
from atoll.server.keys.tables import ABOUT

POSTGRES = "postgresql+psycopg"
_WRITES = "atoll_writes"
_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 0x41746F6C6C  # any number that nobody else takes in PostgreSQL's space of advisory locks
_SQLITE_WAIT_S = 30  # several servers that start at once on a busy machine bring the tables up to date in turn
_SQLITE_PAUSE_S = 0.01
# Closing a file drops all locks of this process on it, SQLite's too: nobody connects while another makes the file.
_making_file = threading.Lock()
_POSTGRES_ARGUMENTS = {
    "connect_timeout": 5,
    # A peer that vanished without a word is noticed in seconds, not in the hours that TCP would wait.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "application_name": "atoll",
}


class DatabaseUnavailable(Unavailable):
    """The database does not answer, or refuses."""

    code = "database_unavailable"


def data_folder() -> Path:
    """`atoll` in the XDG data folder."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "atoll"


def database_url(wanted: str | None) -> URL:
    """A URL, or the path of an SQLite file; None for atoll.db in the data folder. Raises UsageError."""
    written = wanted or str(data_folder() / "atoll.db")
    if "://" not in written:
        return URL.create("sqlite", database=str(Path(written).expanduser().absolute()))
    try:
        url = make_url(written)
    except ArgumentError:  # its message may quote the password
        raise _bad_url("it is not a URL") from None
    if url.drivername in ("postgres", "postgresql", POSTGRES):
        return url.set(drivername=POSTGRES)
    if url.drivername != "sqlite":
        raise _bad_url(f"{url.drivername} is neither sqlite nor postgresql")
    if not url.database or url.database == ":memory:":
        raise _bad_url("it names no file")
    return url


def _bad_url(why: str) -> UsageError:
    mend = "give the path of an SQLite file, or postgresql://user:password@host/name"
    return UsageError("the database's address cannot be used", why=why, mend=mend)


def exists(url: URL) -> bool:
    """Whether there may be keys: an SQLite file that nobody has made holds none."""
    return url.drivername != "sqlite" or Path(str(url.database)).exists()


class Database:
    """The tables, up to date. Safe to use from several threads and processes; `close` gives the connections back."""

    def __init__(self, url: URL) -> None:
        """Brings the tables up to date, in a new file too. Raises DatabaseUnavailable, Incompatible, UsageError."""
        self.name = url.render_as_string(hide_password=True)
        self._engine = _sqlite(url) if url.drivername == "sqlite" else _postgres(url)
        _migrate(self)
        with self.reading() as connection:
            self.id: str = connection.execute(select(ABOUT.c.database_id)).scalar_one()

    @property
    def is_postgres(self) -> bool:
        """Whether the other SQL is to be spoken."""
        return self._engine.dialect.name == "postgresql"

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads. Raises DatabaseUnavailable."""
        with self._transaction(writes=False) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction, committed unless something is raised. Raises DatabaseUnavailable."""
        with self._transaction(writes=True) as connection:
            yield connection

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                connection = connection.execution_options(**{_WRITES: writes})
                with connection.begin():
                    yield connection
        except SQLAlchemyError as error:
            raise DatabaseUnavailable(
                f"the database {self.name} cannot be used",
                why=_reason(error),
                mend="see that it runs and that its address is right",
            ) from None  # the chain quotes statements with their values


def _reason(error: SQLAlchemyError) -> str:
    """The first line of what the driver says: the rest quotes the statement and its values."""
    said = str(getattr(error, "orig", None) or type(error).__name__)
    return said.strip().splitlines()[0] if said.strip() else type(error).__name__


def _sqlite(url: URL) -> Engine:
    path = Path(str(url.database))
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _making_file:
            if not path.exists():  # SQLite would make it for everybody to read
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(path, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UsageError(f"cannot write the database {path}", why=error.strerror) from None
    engine = create_engine(url, connect_args={"timeout": _SQLITE_WAIT_S})

    @event.listens_for(engine, "connect")
    def on_connect(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # transactions are ours, DDL's too
        cursor = connection.cursor()
        _use_wal(cursor)
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        # A transaction that reads first and writes later would fail where two do so at once.
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """SQLite does not wait for others where a new file's journal is chosen (sqlite.org/wal.html): we do."""
    give_up = time.monotonic() + _SQLITE_WAIT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
        time.sleep(_SQLITE_PAUSE_S)


def _postgres(url: URL) -> Engine:
    try:
        return create_engine(url, connect_args=_POSTGRES_ARGUMENTS, pool_pre_ping=True, pool_size=3, max_overflow=2)
    except ImportError:
        mend = "pip install 'atoll[postgres]'"
        raise UsageError("PostgreSQL needs a driver that is not installed", why="no psycopg", mend=mend) from None


def _migrate(database: Database) -> None:
    from alembic import command  # takes a third of a second, and only this needs it
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with database.writing() as connection:
        if database.is_postgres:
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise Incompatible(
                f"the tables of {database.name} are not this version's",
                why=str(error),
                mend="a newer Atoll has used this database: use that one, or another database",
            ) from None
