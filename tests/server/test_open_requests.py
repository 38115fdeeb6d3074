"""Places among the open requests: all of them without keys; with keys no tenant keeps the others out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import Overloaded, RateLimited, RequestInvalid
from atoll.model.load import BaseModel, load_base
from atoll.server.caller import ANYBODY, Caller
from atoll.server.gateway import EventStream, Gateway
from atoll.server.keys.accounts import Accounts
from atoll.server.keys.database import Database, database_url
from atoll.server.keys.keys import KeyStore, NewKey
from atoll.server.metrics import ServerMetrics
from atoll.server.open_requests import ALPHA, OpenRequests
from atoll.server.prepare import Ask
from atoll.server.settings import ServerSettings
from support.preparing import stuck_preparing
from support.servers import served_world
from support.stub import StubEngine, empty_catalog

ASK = Ask(prompt="x", default_temperature=0.0, default_max_new_tokens=2)
GREEDY, OTHER, THIRD = (Caller(key_id=name, tenant=name) for name in ("greedy", "other", "third"))


class RefusingMeter:
    """A meter for which every caller has used up its tokens."""

    def admit(self, caller: Caller, num_prompt_tokens: int) -> None:
        raise RateLimited("this key has used up its tokens", retry_after_s=60)

    def ended(self, spent: Any) -> None:
        pass


@dataclass
class House:
    """A gateway over an engine that makes its tokens up."""

    gateway: Gateway
    engine: StubEngine

    @property
    def open_by_tenant(self) -> dict[str, int]:
        return self.gateway.open_requests.by_tenant

    async def fill(self, caller: Caller, count: int = 1) -> tuple[list[EventStream], Overloaded]:
        """Open as many requests as there are to be had, `count` at a time; then comes the refusal."""
        opened: list[EventStream] = []
        while True:
            try:
                opened += await self.gateway.open_several(ASK, caller, count, stream=True)
            except Overloaded as refusal:
                return opened, refusal


@pytest.fixture(scope="module")
def base(tiny_base_folder: Path) -> BaseModel:
    return load_base(str(tiny_base_folder), device="cpu", dtype="float32")


@pytest.fixture
def new_house(base: BaseModel, tmp_path: Path) -> Callable[..., House]:
    """Makes a gateway. What it submits is answered once the engine is started."""
    engine = StubEngine()

    def make(max_open: int = 256, meter: Any = None) -> House:
        metrics = ServerMetrics(engine.stats, max_adapters=1)
        settings = ServerSettings(max_open_requests=max_open)
        return House(Gateway(engine, base, empty_catalog(tmp_path), settings, metrics, meter), engine)

    return make


def close_all(streams: list[EventStream]) -> None:
    for events in streams:
        events.close()


def test_a_greedy_tenant_is_told_its_share_and_leaves_places_to_others(new_house: Callable[..., House]) -> None:
    async def crowd() -> None:
        house = new_house()
        held, refusal = await house.fill(GREEDY)
        assert len(held) == 204
        assert "this tenant has 204 requests open and asks for 1 more, but its share is 204 " in refusal.what
        assert refusal.mend
        assert (refusal.http_status, refusal.code, refusal.retry_after_s) == (429, "overloaded", 1)
        assert house.gateway.metrics.troubles() == {"overloaded": 1}
        others, _ = await house.fill(OTHER)
        assert len(others) == 41, "four fifths of the 52 that the first one leaves"
        close_all(held[:50])
        with pytest.raises(Overloaded, match="has 154 requests open and asks for 20 more, but its share is 172 "):
            await house.gateway.open_several(ASK, GREEDY, 20, stream=True)
        held += await house.gateway.open_several(ASK, GREEDY, 18, stream=True)
        close_all([*held, *others])
        assert house.open_by_tenant == {}

    asyncio.run(crowd())


@pytest.mark.parametrize("num_greedy", [1, 2, 5])
def test_greedy_tenants_come_to_hold_the_same(new_house: Callable[..., House], num_greedy: int) -> None:
    async def crowd() -> None:
        house = new_house()
        held = {Caller(tenant=f"greedy-{number}"): list[EventStream]() for number in range(num_greedy)}
        for _ in range(256):  # the first one begins with most of all places
            for caller, streams in held.items():
                if streams:
                    streams.pop().close()
                streams += (await house.fill(caller))[0]
        fair = ALPHA * 256 / (1 + num_greedy * ALPHA)
        assert all(abs(len(streams) - fair) < ALPHA for streams in held.values())
        held[OTHER] = [await house.gateway.open(ASK, OTHER, stream=True)]
        for streams in held.values():
            close_all(streams)

    asyncio.run(crowd())


def test_without_keys_all_places_can_be_used(new_house: Callable[..., House]) -> None:
    async def crowd() -> None:
        house = new_house()
        held, refusal = await house.fill(ANYBODY, 4)
        assert len(held) == 256
        assert refusal.what == "256 requests are open already"
        assert house.gateway.metrics.troubles() == {"overloaded": 1}
        close_all(held)
        assert house.open_by_tenant == {}

    asyncio.run(crowd())


@pytest.mark.parametrize(("max_open", "most"), [(1, 1), (2, 1), (3, 2), (4, 3), (5, 4)])
def test_few_places_are_shared_too(new_house: Callable[..., House], max_open: int, most: int) -> None:
    async def crowd() -> None:
        house = new_house(max_open)
        held, _ = await house.fill(GREEDY)
        assert len(held) == most
        newcomers, _ = await house.fill(OTHER)
        assert len(newcomers) == min(1, max_open - most)
        close_all([*held, *newcomers])

    asyncio.run(crowd())


def test_every_end_gives_its_place_back(new_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch) -> None:
    async def all_ends() -> None:
        house = new_house()
        for error in (None, RequestInvalid("the engine did not like it")):
            house.engine.error = error
            streams = await house.gateway.open_several(ASK, OTHER, 3, stream=False)
            assert house.open_by_tenant == {"other": 3}
            for events in streams:
                with nullcontext() if error is None else pytest.raises(RequestInvalid, match="the engine"):
                    await events.collect()
                events.close()
                events.close()
            assert house.open_by_tenant == {}

        with pytest.raises(RequestInvalid):
            await house.gateway.open_several(Ask(**vars(ASK) | {"max_new_tokens": -1}), OTHER, 3, stream=False)
        assert house.open_by_tenant == {}

        num_left = [2]

        def submit(request: object) -> None:
            num_left[0] -= 1
            if num_left[0] < 0:
                raise RequestInvalid("the third one of them")

        monkeypatch.setattr(house.engine, "submit", submit)
        with pytest.raises(RequestInvalid, match="third"):
            await house.gateway.open_several(ASK, OTHER, 3, stream=False)
        assert house.open_by_tenant == {}

        refusing = new_house(meter=RefusingMeter())
        with pytest.raises(RateLimited):
            await refusing.gateway.open_several(ASK, OTHER, 3, stream=False)
        assert refusing.open_by_tenant == {}

    with new_house().engine:
        asyncio.run(all_ends())


def test_what_is_given_up_counts_for_its_tenant_while_a_thread_prepares_it(new_house: Callable[..., House]) -> None:
    async def give_up() -> None:
        house = new_house(5)
        with stuck_preparing() as (has_begun, release):
            for _ in range(2):
                opening = asyncio.create_task(house.gateway.open_several(ASK, GREEDY, 2, stream=False))
                assert await asyncio.to_thread(has_begun.acquire, timeout=20)
                opening.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await opening
        assert house.open_by_tenant == {"greedy": 2}
        with pytest.raises(Overloaded, match="this tenant has 2 requests open and asks for 3 more"):
            await house.gateway.open_several(ASK, GREEDY, 3, stream=False)
        (await house.gateway.open(ASK, OTHER, stream=False)).close()
        release.set()
        async with asyncio.timeout(20):
            while house.open_by_tenant:
                await asyncio.sleep(0.01)

    asyncio.run(give_up())


def test_one_tenant_whose_adapters_are_slow_to_fetch_leaves_half_of_the_threads(
    new_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atoll.server.prepare.Preparer.is_slow", lambda *_: True)

    async def fetch() -> None:
        house = new_house(100)
        with stuck_preparing() as (has_begun, release):
            asks = [asyncio.create_task(house.gateway.open(ASK, GREEDY, stream=False)) for _ in range(20)]
            for _ in range(4):
                assert await asyncio.to_thread(has_begun.acquire, timeout=20)
            assert not await asyncio.to_thread(has_begun.acquire, timeout=0.1), "half of the threads, and no more"
            asks.append(asyncio.create_task(house.gateway.open(ASK, OTHER, stream=False)))
            assert await asyncio.to_thread(has_begun.acquire, timeout=20)
            release.set()
            ended = await asyncio.gather(*asks, return_exceptions=True)
        assert [str(error) for error in ended] == ["too late"] * 21
        assert house.open_by_tenant == {}

    asyncio.run(fetch())


TURNS = st.tuples(st.sampled_from("abcd"), st.just(1) | st.integers(2, 8), st.booleans())


@settings(deadline=None)
@given(max_open=st.integers(1, 3) | st.integers(4, 40), turns=st.lists(TURNS, max_size=60))
def test_newcomers_are_let_in_whatever_was_opened_and_closed(max_open: int, turns: list[tuple[str, int, bool]]) -> None:
    places, held = OpenRequests(max_open), Counter[str]()
    for tenant, count, is_end in turns:
        if is_end:
            count = min(count, held[tenant])
            places.remove(tenant, count)
            held[tenant] -= count
        else:
            free = max_open - held.total() - count
            fits = free >= 0 and (held[tenant] + count <= ALPHA * free or held[tenant] + count == 1)
            if fits:
                places.admit(tenant, count)
                held[tenant] += count
            else:
                with pytest.raises(Overloaded):
                    places.admit(tenant, count)
        assert places.by_tenant == {name: number for name, number in held.items() if number}
        assert held.total() <= max_open
        if all(number <= ALPHA * (max_open - held.total()) for number in held.values()):
            places.admit("newcomer", 1)
            places.remove("newcomer", 1)


@dataclass
class Server:
    """A server with keys over a real engine. headers: of a key, by tenant."""

    url: str
    headers: dict[str, dict[str, str]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    database = Database(database_url(str(tmp_path / "atoll.db")))
    keys = KeyStore(database)
    shown = {tenant: keys.create(NewKey(tenant=tenant))[1] for tenant in ("greedy", "other")}
    settings = ServerSettings(max_open_requests=12)
    with (
        Accounts(database, tmp_path / "journals") as accounts,
        served_world(tmp_path, settings=settings, accounts=accounts, max_num_requests=8) as served,
    ):
        yield Server(served.url, {tenant: {"Authorization": f"Bearer {key}"} for tenant, key in shown.items()})
    database.close()


def test_a_tenant_that_takes_every_place_it_can_get_keeps_no_other_out(server: Server) -> None:
    async def crowd() -> tuple[list[httpx.Response], list[httpx.Response]]:
        async with httpx.AsyncClient(
            base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=40)
        ) as client:
            refused: list[httpx.Response] = []

            async def ask(tenant: str, max_tokens: int) -> httpx.Response:
                body = {"prompt": "x", "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}
                return await client.post("/v1/completions", json=body, headers=server.headers[tenant])

            async def be_greedy() -> None:
                while True:
                    answer = await ask("greedy", 100)
                    if answer.status_code == 429:
                        refused.append(answer)
                        await asyncio.sleep(0.01)

            tasks = [asyncio.create_task(be_greedy()) for _ in range(20)]
            while len(refused) < 11:
                await asyncio.sleep(0.01)
            answers = [await ask("other", 2) for _ in range(10)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return refused, answers

    refused, answers = asyncio.run(crowd())
    assert [answer.status_code for answer in answers] == [200] * 10
    error = refused[0].json()["error"]
    assert (error["code"], error["type"], refused[0].headers["retry-after"]) == ("overloaded", "rate_limit_error", "1")
    assert "this tenant has 9 requests open" in error["message"]
    assert "try again in a second" in error["message"]
