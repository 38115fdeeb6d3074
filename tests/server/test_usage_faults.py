"""Whole servers that meter: killed, without their database, without room on the disk."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import httpx2 as httpx
import pytest

from atoll.model.load import load_base
from atoll.server.app import create_app
from atoll.server.caller import Caller
from atoll.server.keys.accounts import Accounts
from atoll.server.keys.database import Database, DatabaseUnavailable, database_url
from atoll.server.keys.keys import KeyStore, NewKey
from atoll.server.keys.usage import UsageStore
from atoll.server.meter import Spent
from support.metered import Metered, metered_server
from support.postgres import running_postgres
from support.scale import scaled
from support.servers import serving, wait_until
from support.stub import StubEngine, empty_catalog

NUM_CLIENTS = 6
NUM_TOKENS = 3


def num_requests(store: UsageStore) -> int:
    return sum(row.sums.requests for row in store.report())


class Crowd:
    """Clients that ask for as long as they are let, and count."""

    def __init__(self, url: str, key: str) -> None:
        self.num_sent = 0
        self.num_answered = 0
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"}

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`, or until the server is gone."""
        async with httpx.AsyncClient(base_url=self._url, headers=self._headers, timeout=30) as client:
            await asyncio.gather(*(self._ask(client, stop, number % 2 == 0) for number in range(NUM_CLIENTS)))

    async def _ask(self, client: httpx.AsyncClient, stop: asyncio.Event, stream: bool) -> None:
        body = {"inputs": "Hello", "parameters": {"max_new_tokens": NUM_TOKENS}}
        while not stop.is_set():
            self.num_sent += 1
            try:
                answer = await client.post("/generate_stream" if stream else "/generate", json=body)
            except httpx.HTTPError:
                return
            assert answer.status_code == 200, answer.text
            if "xxx" in answer.text:
                self.num_answered += 1


@pytest.mark.slow
def test_a_server_that_is_killed_loses_no_answered_request(tmp_path: Path, tiny_base_folder: Path) -> None:
    database = Database(database_url(str(tmp_path / "atoll.db")))
    key, shown = KeyStore(database).create(NewKey())
    dice = random.Random(11)
    num_sent = num_answered = 0
    for _ in range(scaled(6, 20)):
        with metered_server(tiny_base_folder, tmp_path) as server:
            crowd = Crowd(server.url, shown)

            async def until_it_is_killed(crowd: Crowd = crowd, server: Metered = server) -> None:
                running = asyncio.create_task(crowd.run(asyncio.Event()))
                while crowd.num_answered == 0:
                    await asyncio.sleep(0.005)
                await asyncio.sleep(dice.uniform(0, 0.4))
                server.kill()
                await running

            asyncio.run(until_it_is_killed())
        num_sent += crowd.num_sent
        num_answered += crowd.num_answered
    # A last one takes over what the others have left.
    with Accounts(database, tmp_path / "journals"):
        pass
    (row,) = UsageStore(database).report()
    assert row.key_id == key.key_id
    assert 0 < num_answered <= row.sums.requests <= num_sent
    assert row.sums.generated_tokens == NUM_TOKENS * row.sums.requests
    assert not list((tmp_path / "journals" / database.id).iterdir())
    database.close()


def test_a_database_that_is_gone_for_a_while_costs_no_request_and_no_count(
    tmp_path: Path, tiny_base_folder: Path
) -> None:
    base = load_base(str(tiny_base_folder), device="cpu", dtype="float32")
    with running_postgres() as postgres:
        database = Database(database_url(postgres.url))
        key, shown = KeyStore(database).create(NewKey())
        store = UsageStore(database)
        with (
            Accounts(database, tmp_path / "journals", refresh_s=0.05, fold_s=0.05) as accounts,
            StubEngine() as engine,
            serving(create_app(engine, base, empty_catalog(tmp_path), accounts=accounts)) as url,
        ):
            crowd = Crowd(url, shown)

            async def through_it_all() -> None:
                stop = asyncio.Event()
                running = asyncio.create_task(crowd.run(stop))
                for number in (signal.SIGINT, signal.SIGQUIT):
                    await asyncio.to_thread(wait_until, lambda seen=crowd.num_answered: crowd.num_answered > seen + 20)
                    await asyncio.to_thread(postgres.stop, number)
                    await asyncio.to_thread(wait_until, lambda seen=crowd.num_answered: crowd.num_answered > seen + 20)
                    await asyncio.sleep(scaled(0, 30))
                    await asyncio.to_thread(postgres.start)
                stop.set()
                await running

            asyncio.run(through_it_all())
            wait_until(lambda: num_requests(store) == crowd.num_answered, timeout_s=60)
        assert crowd.num_answered == crowd.num_sent
        (row,) = store.report()
        assert (row.key_id, row.sums.generated_tokens) == (key.key_id, NUM_TOKENS * crowd.num_sent)
        database.close()


def test_a_server_that_ends_without_its_database_leaves_the_rest_to_the_next(tmp_path: Path) -> None:
    with running_postgres() as postgres:
        database = Database(database_url(postgres.url))
        with Accounts(database, tmp_path, fold_s=60) as accounts:
            accounts.ended(
                Spent(
                    caller=Caller(key_id="k"),
                    adapter="a",
                    outcome="ok",
                    num_prompt_tokens=5,
                    num_cached_tokens=0,
                    num_new_tokens=3,
                    seconds=0.1,
                )
            )
            postgres.stop()
        postgres.start()
        with Accounts(database, tmp_path, fold_s=60):
            pass
        assert num_requests(UsageStore(database)) == 1
        database.close()


def test_while_usage_cannot_be_written_nothing_is_given_away(tmp_path: Path, tiny_base_folder: Path) -> None:
    base = load_base(str(tiny_base_folder), device="cpu", dtype="float32")
    database = Database(database_url(str(tmp_path / "atoll.db")))
    _, shown = KeyStore(database).create(NewKey())
    body = {"prompt": "Hello", "max_tokens": NUM_TOKENS}
    headers = {"x-api-key": shown}
    with (
        Accounts(database, tmp_path / "journals") as accounts,
        StubEngine() as engine,
        serving(create_app(engine, base, empty_catalog(tmp_path), accounts=accounts)) as url,
    ):
        journal = accounts._journal
        own = journal._descriptor
        with open("/dev/full", "wb") as full:
            journal._descriptor = full.fileno()  # a disk without room
            first = httpx.post(f"{url}/v1/completions", json=body, headers=headers)
            second = httpx.post(f"{url}/v1/completions", json=body, headers=headers)
            journal._descriptor = own
        third = httpx.post(f"{url}/v1/completions", json=body, headers=headers)
        assert engine.num_submitted == 2
    assert [answer.status_code for answer in (first, second, third)] == [200, 503, 200]
    assert second.json()["error"]["code"] == "unavailable"
    assert num_requests(UsageStore(database)) == 2
    database.close()


def test_a_database_that_does_not_answer_is_an_error_of_our_own(tmp_path: Path) -> None:
    with running_postgres() as postgres:
        database = Database(database_url(postgres.url))
        postgres.stop()
        for call in (KeyStore(database).list, UsageStore(database).report, lambda: UsageStore(database).forget("j")):
            with pytest.raises(DatabaseUnavailable, match="cannot be used"):
                call()
        database.close()
