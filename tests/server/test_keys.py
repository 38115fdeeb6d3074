"""Keys in SQLite and in PostgreSQL: made, found, revoked, limited."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from atoll.errors import Incompatible, RateLimited, Unauthorized, Unavailable, UsageError
from atoll.server.keys.database import Database, DatabaseUnavailable, database_url, exists
from atoll.server.keys.keys import Key, KeyLimits, KeyNotFound, KeyStore, NewKey, digest_of, key_id_of
from atoll.server.keys.limits import KeyLimiter
from atoll.server.keys.ring import KeyRing
from atoll.server.keys.tables import METADATA
from support.postgres import Postgres, running_postgres
from support.servers import wait_until
from support.together import run_together

WHOLE = NewKey(
    name="the shop",
    tenant="acme",
    scopes=frozenset({"use", "admin"}),
    adapters=("support-*", "sql"),
    priority=-3,
    limits=KeyLimits(requests_per_minute=60, tokens_per_minute=10_000, concurrency=4),
    expires_at_s=4_000_000_000,
)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return str(tmp_path / "atoll.db")
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def database(address: str) -> Iterator[Database]:
    opened = Database(database_url(address))
    yield opened
    opened.close()


def test_a_key_comes_back_as_it_was_made(database: Database) -> None:
    store = KeyStore(database)
    plain, _ = store.create(NewKey())
    whole, _ = store.create(WHOLE)
    assert store.list() == sorted([plain, whole], key=lambda key: (key.created_at_s, key.key_id))
    assert vars(WHOLE).items() <= vars(whole).items()
    assert plain.caller.scopes == {"use"}
    assert whole.caller.may_use("support-de")
    assert not whole.caller.may_use("billing")


def test_keys_are_long_random_and_different(database: Database) -> None:
    texts = {KeyStore(database).create(NewKey())[1] for _ in range(20)}
    assert len(texts) == 20
    for shown in texts:
        secret = shown.removeprefix(f"atoll-{key_id_of(shown)}-")
        assert len(secret) == 43  # 256 bits, six in a character


def test_only_a_digest_of_a_key_is_kept(tmp_path: Path) -> None:
    database = Database(database_url(str(tmp_path / "atoll.db")))
    key, shown = KeyStore(database).create(NewKey())
    database.close()
    secret = shown.rpartition(key.key_id + "-")[2].encode()
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    content = b"".join(path.read_bytes() for path in files)
    assert digest_of(shown).encode() in content
    assert secret not in content
    assert key.digest not in repr(key)
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)


def test_revoking_is_all_or_nothing(database: Database) -> None:
    store = KeyStore(database)
    first, second = (store.create(NewKey())[0] for _ in range(2))
    with pytest.raises(KeyNotFound, match="no key 'none'"):
        store.revoke([first.key_id, "none"])
    assert [key.revoked_at_s for key in store.list()] == [None, None]
    store.revoke([first.key_id])
    assert {key.key_id for key in store.list() if key.revoked_at_s is None} == {second.key_id}


@pytest.mark.parametrize(
    "wrong",
    [
        {"tenant": ""},
        {"tenant": "a\nb"},
        {"name": "x" * 65},
        {"name": "\x1b[2J"},
        {"scopes": frozenset()},
        {"adapters": ()},
        {"adapters": ("",)},
        {"adapters": ("a\0b",)},
        {"adapters": ("x" * 201,)},
        {"adapters": ("x",) * 101},
        {"limits": KeyLimits(concurrency=0)},
        {"limits": KeyLimits(tokens_per_minute=2**31)},
        {"priority": 2**31},
    ],
    ids=str,
)
def test_a_key_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        NewKey(**wrong)  # type: ignore[arg-type]


def test_opening_again_changes_nothing(address: str) -> None:
    first = Database(database_url(address))
    key, _ = KeyStore(first).create(WHOLE)
    second = Database(database_url(address))
    assert second.id == first.id
    assert KeyStore(second).list() == [key]
    first.close()
    second.close()


def test_servers_that_start_at_once_make_one_database(address: str) -> None:
    ids: list[str] = []
    barrier = threading.Barrier(4)

    def open_it() -> None:
        barrier.wait()
        database = Database(database_url(address))
        ids.append(database.id)
        database.close()

    run_together(open_it, 4)
    assert len(ids) == 4
    assert len(set(ids)) == 1


def test_a_new_file_waits_for_another_that_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "atoll.db"
    other = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # SQLite answers "locked" to another journal mode at once now
    release = threading.Timer(0.3, other.close)
    release.start()
    Database(database_url(str(path))).close()
    release.join()


def test_the_migrations_end_in_the_tables_of_the_code(database: Database) -> None:
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_a_newer_database_is_refused(address: str) -> None:
    database = Database(database_url(address))
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(Incompatible, match="not this version's"):
        Database(database_url(address))


@pytest.mark.parametrize(
    "wrong",
    ["mysql://u:secret@host/x", "sqlite://", "sqlite:///:memory:", "://secret", "postgresql+asyncpg://u:secret@h/x"],
)
def test_an_address_that_cannot_be_used_is_refused_without_its_password(wrong: str) -> None:
    with pytest.raises(UsageError) as caught:
        database_url(wrong)
    assert "secret" not in str(caught.value)


def test_a_database_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        Database(database_url(f"postgresql://atoll:secret@/x?host={tmp_path}"))
    assert "secret" not in str(caught.value)
    assert str(caught.value.__cause__) == "None"


def test_a_folder_in_the_place_of_the_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Is a directory"):
        Database(database_url(str(tmp_path)))


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "atoll.db"
    path.touch()
    monkeypatch.setattr(os, "access", lambda where, mode: Path(where) != path)  # root may write everywhere
    with pytest.raises(UsageError, match="Permission denied"):
        Database(database_url(str(path)))


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "atoll.db"
    assert not exists(database_url(str(path)))
    path.write_text("these are not the pages of a database\n" * 100)
    assert exists(database_url(str(path)))
    with pytest.raises(DatabaseUnavailable, match="not a database"):
        Database(database_url(str(path)))


# ---- the keys in memory


def test_a_key_is_found_by_itself_alone(database: Database) -> None:
    store = KeyStore(database)
    key, shown = store.create(NewKey())
    other, _ = store.create(NewKey())
    ring = KeyRing(store)
    assert ring.find(shown) == key
    wrong = [
        "",
        "atoll",
        shown[:-1],
        shown + "x",
        shown[:-1] + ("A" if shown[-1] != "A" else "B"),
        shown.replace(key.key_id, other.key_id),
        shown.upper(),
        key.digest,
        f"atoll-{key.key_id}-" + "A" * 43,
        "x" * 100_000,
        "ü",
    ]
    for text_ in wrong:
        with pytest.raises(Unauthorized, match="not valid"):
            ring.find(text_)


def test_an_expired_key_is_refused_from_its_second_on(database: Database) -> None:
    now_s = [1000.0]
    store = KeyStore(database)
    key, shown = store.create(NewKey(expires_at_s=2000))
    ring = KeyRing(store, now_s=lambda: now_s[0])
    now_s[0] = 1999.9
    assert ring.find(shown) == key
    now_s[0] = 2000.0
    with pytest.raises(Unauthorized, match="expired"):
        ring.find(shown)


def test_changes_are_seen_by_themselves(database: Database) -> None:
    store = KeyStore(database)
    old, shown = store.create(NewKey())
    ring = KeyRing(store, refresh_s=0.02)
    ring.start()
    assert ring.find(shown) == old
    store.revoke([old.key_id])
    new, new_shown = store.create(NewKey())
    wait_until(lambda: ring.get(new.key_id), timeout_s=5)
    assert ring.find(new_shown) == new
    with pytest.raises(Unauthorized, match="revoked"):
        ring.find(shown)
    ring.close()


def test_known_keys_outlive_a_database_that_is_gone_and_changes_come_with_it() -> None:
    with running_postgres() as server:
        database = Database(database_url(server.url))
        store = KeyStore(database)
        old, shown = store.create(NewKey())
        ring = KeyRing(store, refresh_s=0.02)
        ring.start()
        server.stop()
        with pytest.raises(DatabaseUnavailable):
            ring.refresh()
        assert ring.find(shown) == old
        server.start()
        new, _ = store.create(NewKey())
        wait_until(lambda: ring.get(new.key_id), timeout_s=30)
        ring.close()
        database.close()


def test_without_a_database_for_too_long_nobody_is_let_in(database: Database) -> None:
    store = KeyStore(database)
    _, shown = store.create(NewKey())
    ring = KeyRing(store, max_age_s=0.0)
    with pytest.raises(Unavailable, match="cannot be checked"):
        ring.find(shown)


# ---- limits


def a_key(**limits: int) -> Key:
    return Key(key_id="k", created_at_s=0, digest="", limits=KeyLimits(**limits))


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.floats(0, 40), st.integers(1, 5)), min_size=1, max_size=60),
)
def test_no_window_lets_more_requests_in_than_its_minutes_and_one_burst(
    per_minute: int, arrivals: list[tuple[float, int]]
) -> None:
    clock = Clock()
    limiter, key = KeyLimiter(clock), a_key(requests_per_minute=per_minute)
    let_in: list[float] = []
    for pause_s, num_requests in arrivals:
        clock.now_s += pause_s
        for _ in range(num_requests):
            with suppress(RateLimited), limiter.request(key):
                let_in.append(clock.now_s)
    for first, start_s in enumerate(let_in):
        for last in range(first, len(let_in)):
            window_s = let_in[last] - start_s
            assert last - first + 1 <= per_minute + window_s * per_minute / 60 + 1e-6


@given(st.integers(1, 100), st.integers(1, 500))
def test_retry_after_is_when_it_works_again(per_minute: int, num_tokens: int) -> None:
    clock = Clock()
    limiter, key = KeyLimiter(clock), a_key(tokens_per_minute=per_minute)
    limiter.take_tokens(key, num_tokens)
    limiter.charge_tokens(key, per_minute)
    with pytest.raises(RateLimited) as caught:
        limiter.take_tokens(key, num_tokens)
    clock.now_s += caught.value.retry_after_s
    limiter.take_tokens(key, num_tokens)


def test_what_an_answer_took_is_missing_for_the_next_one() -> None:
    clock = Clock()
    limiter, key = KeyLimiter(clock), a_key(tokens_per_minute=60)
    limiter.take_tokens(key, 10)
    limiter.charge_tokens(key, 110)  # 60 tokens in debt
    with pytest.raises(RateLimited, match="60 tokens in a minute") as caught:
        limiter.take_tokens(key, 1)
    assert caught.value.retry_after_s == 61


def test_requests_at_once_are_counted_while_they_run() -> None:
    limiter, key = KeyLimiter(), a_key(concurrency=2)

    def fails() -> None:
        with limiter.request(key):
            raise KeyError

    with limiter.request(key), limiter.request(key), pytest.raises(RateLimited, match="2 requests"):
        limiter.request(key).__enter__()
    for _ in range(3):
        with pytest.raises(KeyError):
            fails()
    with limiter.request(key), limiter.request(key):
        pass


def test_keys_do_not_share_their_limits_and_idle_ones_are_forgotten() -> None:
    clock = Clock()
    limiter = KeyLimiter(clock)
    for number in range(3000):
        key = Key(key_id=str(number), created_at_s=0, digest="", limits=KeyLimits(requests_per_minute=1))
        with limiter.request(key):
            pass
        clock.now_s += 1
    assert len(limiter._accounts) <= 1100
    with pytest.raises(RateLimited), limiter.request(key):
        pass
