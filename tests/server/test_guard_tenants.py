"""Two tenants on one server, each with secrets of its own: nothing of one is ever seen by the other."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
import pytest

from atoll.server.keys.accounts import Accounts
from atoll.server.keys.database import Database, database_url
from atoll.server.keys.keys import KeyStore, NewKey
from atoll.server.keys.usage import UsageStore
from support.adapters import save_random_adapter
from support.logs import captured_log
from support.servers import Served, served_world, wait_until, write_contract
from support.tiny import make_model

MINE, THEIRS = "quokka", "wombat"  # in the names of the tenants' adapters, in their contracts and in their prompts
MESSAGES = [{"role": "user", "content": "x"}]
PROMPT = f"The secret of the {THEIRS} is told here, and it is long enough for some blocks of the prefix cache. "


@dataclass
class Tenants:
    """A server that knows two tenants; `heard` is everything that the first one was ever sent."""

    served: Served
    mine: dict[str, str]
    theirs: dict[str, str]
    usage: UsageStore
    key_ids: dict[str, str]
    log: io.StringIO
    heard: list[str]

    def ask(self, method: str, path: str, **fields: Any) -> httpx.Response:
        """As the first tenant."""
        answer = httpx.request(method, f"{self.served.url}{path}", headers=self.mine, timeout=60, **fields)
        self.heard.append(f"{answer.headers} {answer.text}")
        return answer

    def cached_tokens(self, tenant: str) -> int:
        return sum(row.sums.cached_tokens for row in self.usage.report(key_id=self.key_ids[tenant]))


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    folder = tmp_path_factory.mktemp("tenants")
    database = Database(database_url(str(folder / "atoll.db")))
    keys = KeyStore(database)
    headers, key_ids = {}, {}
    for tenant in (MINE, THEIRS):
        patterns = (f"{tenant}*", f"local:{tenant}*")
        key, shown = keys.create(NewKey(tenant=tenant, adapters=patterns))
        headers[tenant], key_ids[tenant] = {"Authorization": f"Bearer {shown}"}, key.key_id
    with (
        captured_log() as log,
        Accounts(database, folder / "journals", fold_s=0.02) as accounts,
        served_world(folder, accounts=accounts, num_slots=4) as served,
    ):
        for seed, name in enumerate((f"{MINE}-one", f"{THEIRS}-one", f"{THEIRS}-two", f"{MINE[:-1]}b-one"), start=50):
            adapter = save_random_adapter(folder / name, make_model(), seed=seed)
            write_contract(adapter, served.world.base_folder, name, f"{name} asks: {{text}}")
            served.store.publish(name, adapter)
        yield Tenants(served, headers[MINE], headers[THEIRS], UsageStore(database), key_ids, log, [])
    database.close()


def test_lists_hold_ones_own_adapters_alone(tenants: Tenants) -> None:
    listed = tenants.ask("GET", "/v1/models").json()["data"]
    base = tenants.served.engine.base.name
    assert [model["id"] for model in listed] == [base, f"{MINE}-one"]


@pytest.mark.parametrize(
    "ids",
    [
        (f"{THEIRS}-one", "nobody-one"),
        (f"{THEIRS}-one@1", "nobody-one@1"),
        (f"{THEIRS}-one@99", "nobody-one@99"),
        (f"{THEIRS}-on", "nobody-on"),
        ("alpha", "nobod"),
    ],
)
def test_what_belongs_to_others_is_as_if_it_were_not_there(tenants: Tenants, ids: tuple[str, str]) -> None:
    theirs, nobodys = ids
    answers = []
    for name in ids:
        asked = [
            tenants.ask("GET", f"/v1/models/{name}"),
            tenants.ask("POST", "/v1/completions", json={"model": name, "prompt": "x"}),
            tenants.ask("POST", "/v1/chat/completions", json={"model": name, "messages": MESSAGES}),
            tenants.ask("POST", "/generate", json={"inputs": "x", "parameters": {"adapter_id": name}}),
            tenants.ask("POST", "/generate_stream", json={"inputs": "x", "parameters": {"adapter_id": name}}),
            tenants.ask("POST", "/", json={"inputs": "x", "parameters": {"adapter_id": name}}),
        ]
        answers.append([(answer.status_code, answer.text.replace(name, "?")) for answer in asked])
    assert answers[0] == answers[1], (theirs, nobodys)
    assert {status for status, _ in answers[0]} == {404, 424}
    tenants.heard.clear()  # they repeat the names that were asked for


def test_no_error_hints_at_names_of_others(tenants: Tenants) -> None:
    """`quokka-onee` is near to one's own adapter, `quokkb-one` to somebody else's that the store would hint at."""
    for name in (f"{MINE}-onee", f"{MINE}bb-one", f"{MINE}-tw"):
        answer = tenants.ask("POST", "/v1/completions", json={"model": name, "prompt": "x"})
        assert answer.status_code == 404
        assert f"{MINE[:-1]}b-one" not in answer.text
        assert "did you mean" not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "{theirs}-one",
        "{mine}-one/../{theirs}-one",
        "./{theirs}-one",
        "{mine}@/../{theirs}-one",
        "{root}/{theirs}-one",
        "{root}/{mine}-one/../{theirs}-one",
        "{mine}-one/..",
    ],
)
def test_no_path_leads_to_folders_of_others(tenants: Tenants, path: str) -> None:
    root = tenants.served.world.base_folder.parent
    wanted = path.format(mine=MINE, theirs=THEIRS, root=root)
    parameters = {"adapter_id": wanted, "adapter_source": "local", "max_new_tokens": 1}
    answer = tenants.ask("POST", "/generate", json={"inputs": "x", "parameters": parameters})
    assert answer.status_code == 424
    assert str(root) not in answer.text.replace(wanted, "?")
    tenants.heard.clear()


def test_ones_own_folder_is_there(tenants: Tenants) -> None:
    parameters = {"adapter_id": f"{MINE}-one", "adapter_source": "local", "max_new_tokens": 1}
    answer = tenants.ask("POST", "/generate", json={"inputs": "x", "parameters": parameters})
    assert answer.status_code == 200


def test_the_prefix_cache_is_no_tenants_window_into_anothers_prompts(tenants: Tenants) -> None:
    body = {"prompt": PROMPT, "max_tokens": 1, "temperature": 0}
    url = f"{tenants.served.url}/v1/completions"
    theirs = [httpx.post(url, json=body, headers=tenants.theirs, timeout=60) for _ in range(2)]
    mine = [tenants.ask("POST", "/v1/completions", json=body) for _ in range(2)]
    cached = [answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in (*theirs, *mine)]
    assert cached[0] == cached[2] == 0
    assert cached[1] == cached[3] >= 16
    wait_until(lambda: [tenants.cached_tokens(tenant) for tenant in (THEIRS, MINE)] == [cached[1], cached[3]])


def test_what_the_whole_server_knows_is_not_for_tenants(tenants: Tenants) -> None:
    for path in ("/metrics", "/atoll/state"):
        assert tenants.ask("GET", path).status_code == 403


def test_errors_of_ones_own_tell_nothing_of_others(tenants: Tenants) -> None:
    wrong = [
        ("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 10**6}}),
        ("/generate", {"inputs": {"no": "x"}, "parameters": {"adapter_id": f"{MINE}-one"}}),
        ("/v1/completions", {"model": f"{MINE}-one", "prompt": "x", "no": 1}),
        ("/v1/chat/completions", {"messages": []}),
    ]
    for path, body in wrong:
        assert 400 <= tenants.ask("POST", path, json=body).status_code < 500


def test_the_first_tenant_never_heard_of_the_second(tenants: Tenants) -> None:
    """Last in this file: it looks through everything that was answered above."""
    for path in ("/info", "/openapi.json", "/health", "/ping"):
        tenants.ask("GET", path)
    text = json.dumps(tenants.heard)
    assert len(text) > 1000
    for canary in (THEIRS, "quokkb", tenants.key_ids[THEIRS], "alpha", "compare"):
        assert canary not in text


def test_the_log_knows_keys_by_their_ids_and_has_no_words(tenants: Tenants) -> None:
    log = tenants.log.getvalue()
    assert f"key_id={tenants.key_ids[THEIRS]}" in log
    assert "The secret of" not in log
    for headers in (tenants.mine, tenants.theirs):
        assert headers["Authorization"].rpartition("-")[2] not in log
