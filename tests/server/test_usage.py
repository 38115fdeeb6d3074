"""Usage: every request counts once, whatever is killed, full or gone in between."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.server.caller import Caller
from atoll.server.keys.database import Database, DatabaseUnavailable, database_url
from atoll.server.keys.folding import Folding
from atoll.server.keys.journal import Journal, taken_over
from atoll.server.keys.keys import KeyStore, NewKey
from atoll.server.keys.usage import MAX_ADAPTER_CHARS, Sums, UsageStore, line_of, sums_of
from atoll.server.meter import Spent
from support.postgres import Postgres, running_postgres
from support.together import run_together

NUM_TOKENS = 3


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(database_url(str(tmp_path / "atoll.db")))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


def spent(adapter: str = "a", key_id: str = "k", *, num_new_tokens: int = NUM_TOKENS) -> Spent:
    return Spent(
        caller=Caller(key_id=key_id),
        adapter=adapter,
        outcome="ok",
        num_prompt_tokens=5,
        num_cached_tokens=2,
        num_new_tokens=num_new_tokens,
        seconds=0.25,
    )


def a_line(adapter: str = "a", at_s: float = 1_790_000_000) -> bytes:
    return line_of(spent(adapter), at_s=at_s, price_per_token_usd=0.5)


def num_requests(store: UsageStore) -> int:
    return sum(row.sums.requests for row in store.report())


def test_sums_are_for_each_key_adapter_and_day(database: Database) -> None:
    key, _ = KeyStore(database).create(NewKey(name="shop", tenant="acme"))
    store = UsageStore(database)
    noon_s, day_s = 1_790_000_000, 86_400
    used = [("a", noon_s), ("a", noon_s + 60), ("", noon_s), ("a", noon_s + day_s)]
    content = b"".join(line_of(spent(name, key.key_id), at_s=at_s, price_per_token_usd=0.5) for name, at_s in used)
    store.add("j", 0, content)
    rows = store.report()
    assert [(row.adapter, row.sums.requests) for row in rows] == [("", 1), ("a", 2), ("a", 1)]
    assert {(row.name, row.tenant) for row in rows} == {("shop", "acme")}
    assert rows[1].sums == Sums(2, 10, 4, 6, 0.5, 8.0)
    assert [row.day for row in rows] == [rows[0].day, rows[0].day, rows[2].day]
    assert (rows[2].day - rows[0].day).days == 1
    assert store.report(since=rows[2].day) == rows[2:]
    assert store.report(key_id="other") == []


def test_mixes_share_a_name() -> None:
    """Every other weight makes another mix: a row for each would let a client fill the database."""
    assert list(sums_of([a_line("merged:0123"), a_line("merged:4567")])) == list(sums_of([a_line("merged")]))


HOSTILE = ["", "\n", "a\0b", "\ud800", "x" * 2000, '","', "\u2028", "'; DROP TABLE atoll_usage; --", "🏝" * 600]


@pytest.mark.parametrize("adapter", HOSTILE)
def test_no_name_of_an_adapter_breaks_a_line_or_a_database(
    adapter: str, database: Database, postgres: Postgres
) -> None:
    line = a_line(adapter)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    other = Database(database_url(postgres.new_database()))
    for opened in (database, other):
        store = UsageStore(opened)
        store.add("j", 0, line + a_line("after"))
        assert num_requests(store) == 2
        assert all(len(row.adapter) <= MAX_ADAPTER_CHARS for row in store.report())
    other.close()


@given(st.lists(st.one_of(st.binary(max_size=40), st.just(a_line()), st.text(max_size=30).map(a_line)), max_size=20))
def test_damaged_lines_are_left_out_and_the_others_count(lines: list[bytes]) -> None:
    whole = [line.rstrip(b"\n").replace(b"\n", b"?") for line in lines]
    good = sum(line.startswith(b"[1790000000,") for line in whole)
    assert sum(sums.requests for sums in sums_of(whole).values()) == good


@pytest.mark.parametrize(
    "line",
    [b"[]", b"{}", b"null", b'[1,"k","a",1,1,1,1,1e300]', b'[1e99,"k","a",1,1,1,1,1]', b'[1,"k","a",-1,1,1,1,1]',
     b'[1,"k","a",NaN,1,1,1,1]', b'[1,7,"a",1,1,1,1,1]', b'[1,"' + b"k" * 33 + b'","a",1,1,1,1,1]', b"[" * 100_000],
)  # fmt: skip
def test_no_damage_reaches_the_database(line: bytes) -> None:
    assert sums_of([line]) == {}


def test_lines_are_added_once_even_if_they_are_offered_twice(database: Database) -> None:
    store = UsageStore(database)
    content = a_line() * 3
    assert store.add("j", 0, content) == len(content)
    assert store.add("j", 0, content) == len(content)
    assert store.add("j", 7, a_line()) == len(content)
    assert num_requests(store) == 3
    assert store.add("j", len(content), a_line()) == len(content) + len(a_line())
    assert num_requests(store) == 4


def test_files_that_are_full_are_followed_by_new_ones_and_go_when_they_are_in_the_sums(
    database: Database, tmp_path: Path
) -> None:
    folder = tmp_path / "journal"
    journal = Journal(folder, max_file_bytes=1000)
    for _ in range(100):
        journal.append(a_line())
    assert len(list(folder.iterdir())) > 3
    store = UsageStore(database)
    Folding(store, folder, journal).fold()
    assert num_requests(store) == 100
    assert list(folder.iterdir()) == [journal.path]


def test_a_database_that_goes_while_a_file_is_put_away_does_not_stop_the_next_ones(
    database: Database, tmp_path: Path
) -> None:
    class Store(UsageStore):
        num_failures = 1

        def forget(self, journal_id: str) -> None:
            if self.num_failures:
                self.num_failures -= 1
                raise DatabaseUnavailable("gone")
            super().forget(journal_id)

    journal = Journal(tmp_path / "journal", max_file_bytes=100)
    store = Store(database)
    folding = Folding(store, tmp_path / "journal", journal)
    for _ in range(6):
        journal.append(a_line())
    with pytest.raises(DatabaseUnavailable):
        folding.fold()
    folding.fold()
    assert num_requests(store) == 6
    assert journal.full == []


def test_what_a_dead_server_left_is_taken_over_but_for_a_line_it_never_finished(
    database: Database, tmp_path: Path
) -> None:
    folder = tmp_path / "journal"
    dead = Journal(folder)
    dead.append(a_line() * 2 + a_line()[:10])
    living = Journal(folder)
    living.append(a_line())
    store = UsageStore(database)
    folding = Folding(store, folder, living)
    with taken_over(dead.path) as is_ours:
        assert not is_ours
    folding.fold()
    assert num_requests(store) == 1
    dead.close()
    folding.fold()
    assert num_requests(store) == 3
    assert list(folder.iterdir()) == [living.path]


def test_many_servers_in_one_folder_count_everything_once(tmp_path: Path, postgres: Postgres) -> None:
    url = database_url(postgres.new_database())
    folder = tmp_path / "journal"
    barrier = threading.Barrier(4)
    failures: list[BaseException] = []

    def run() -> None:
        database = Database(url)
        store, journal = UsageStore(database), Journal(folder, max_file_bytes=2000)
        folding = Folding(store, folder, journal)
        barrier.wait()
        try:
            for _ in range(30):
                for _ in range(5):
                    journal.append(a_line())
                folding.fold()
            journal.close()
            folding.fold()
        except BaseException as error:
            failures.append(error)
        database.close()

    run_together(run, 4)
    assert failures == []
    database = Database(url)
    assert num_requests(UsageStore(database)) == 4 * 30 * 5
    assert list(folder.iterdir()) == []
    database.close()


def test_a_line_that_the_disk_refuses_is_kept_and_written_when_there_is_room(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    lines = path.read_bytes().splitlines()
    assert lines == [b"x" * 99] * 4


# A limit of 250 bytes a file: the third line is cut in two. In a process of its own, since the limit is for all files.
_FULL_DISK = """
import resource, sys
from pathlib import Path
from atoll.server.keys.journal import Journal

journal = Journal(Path(sys.argv[1]))
line = b"x" * 99 + b"\\n"
resource.setrlimit(resource.RLIMIT_FSIZE, (250, resource.RLIM_INFINITY))
for _ in range(4):
    journal.append(line)
assert journal.path.stat().st_size == 250
assert journal.is_stuck
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert not journal.is_stuck
"""
