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

NAMES = ("quokka", "wombat")  # in the names of the tenants' adapters, in their contracts and in their prompts
MESSAGES = [{"role": "user", "content": "x"}]
PROMPT = "The secret of the {them} is told here, and it is long enough for some blocks of the prefix cache. "


@dataclass
class Tenants:
    """A server that knows two tenants, `me` and `them`; `heard` is everything that the first one was ever sent.

    near: begins the name of a third one's adapter, which is like a name of mine. mine, theirs, admin: headers with
    keys; the last is mine too, limited to the same adapters.
    """

    served: Served
    me: str
    them: str
    near: str
    mine: dict[str, str]
    theirs: dict[str, str]
    admin: dict[str, str]
    usage: UsageStore
    key_ids: dict[str, str]
    log: io.StringIO
    heard: list[str]

    def ask(self, method: str, path: str, *, as_admin: bool = False, **fields: Any) -> httpx.Response:
        """As the first tenant."""
        headers = self.admin if as_admin else self.mine
        answer = httpx.request(method, f"{self.served.url}{path}", headers=headers, timeout=60, **fields)
        self.heard.append(f"{answer.headers} {answer.text}")
        return answer

    def post(self, path: str, *, as_admin: bool = False, **body: Any) -> httpx.Response:
        return self.ask("POST", path, as_admin=as_admin, json=body)

    def cached_tokens(self, tenant: str) -> int:
        return sum(row.sums.cached_tokens for row in self.usage.report(key_id=self.key_ids[tenant]))


@pytest.fixture(scope="module", params=[NAMES, NAMES[::-1]], ids=NAMES)
def tenants(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    """Each of the two is once the first one."""
    me, them = request.param
    near = f"{me[:-1]}b"
    folder = tmp_path_factory.mktemp("tenants")
    database = Database(database_url(str(folder / "atoll.db")))
    keys = KeyStore(database)
    headers, key_ids = {}, {}
    for name, tenant, scopes in ((me, me, {"use"}), (them, them, {"use"}), ("admin", me, {"use", "admin"})):
        patterns = (f"{tenant}*", f"local:{tenant}*")
        key, shown = keys.create(NewKey(tenant=tenant, adapters=patterns, scopes=frozenset(scopes)))
        headers[name], key_ids[name] = {"Authorization": f"Bearer {shown}"}, key.key_id
    with (
        captured_log() as log,
        Accounts(database, folder / "journals", fold_s=0.02) as accounts,
        served_world(folder, accounts=accounts, num_slots=4) as served,
    ):
        for seed, name in enumerate((f"{me}-one", f"{them}-one", f"{them}-two", f"{near}-one"), start=50):
            adapter = save_random_adapter(folder / name, make_model(), seed=seed)
            write_contract(adapter, served.world.base_folder, name, f"{name} asks: {{text}}")
            served.store.publish(name, adapter)
        known = (headers[me], headers[them], headers["admin"])
        yield Tenants(served, me, them, near, *known, UsageStore(database), key_ids, log, [])
    database.close()


def test_lists_hold_ones_own_adapters_alone(tenants: Tenants) -> None:
    listed = tenants.ask("GET", "/v1/models").json()["data"]
    base = tenants.served.engine.base.name
    assert [model["id"] for model in listed] == [base, f"{tenants.me}-one"]


def asked_everywhere(tenants: Tenants, name: str) -> list[httpx.Response]:
    """The answers to an adapter's name from every address that takes one."""
    merged = {"ids": [f"{tenants.me}-one", name], "weights": [1.0, 1.0]}
    return [
        tenants.ask("GET", f"/v1/models/{name}"),
        tenants.post("/v1/completions", model=name, prompt="x"),
        tenants.post("/v1/chat/completions", model=name, messages=MESSAGES),
        tenants.post("/v1/responses", model=name, input="x"),
        tenants.post("/v1/embeddings", model=name, input="x"),
        *(
            tenants.post(path, inputs="x", parameters=parameters)
            for path in ("/generate", "/generate_stream", "/", "/invocations", "/embed")
            for parameters in ({"adapter_id": name}, {"merged_adapters": merged})
        ),
    ]


@pytest.mark.parametrize(
    "ids",
    [
        ("{them}-one", "nobody-one"),
        ("{them}-one@1", "nobody-one@1"),
        ("{them}-one@99", "nobody-one@99"),
        ("{them}-on", "nobody-on"),
        ("alpha", "nobod"),
    ],
)
def test_what_belongs_to_others_is_as_if_it_were_not_there(tenants: Tenants, ids: tuple[str, str]) -> None:
    answers = []
    for name in (text.format(them=tenants.them) for text in ids):
        asked = asked_everywhere(tenants, name)
        answers.append([(answer.status_code, answer.text.replace(name, "?")) for answer in asked])
    assert answers[0] == answers[1]
    assert {status for status, _ in answers[0]} == {404, 424}
    tenants.heard.clear()  # they repeat the names that were asked for


def test_nobody_loads_or_unloads_what_belongs_to_others(tenants: Tenants) -> None:
    """With the scope admin neither; without it nothing is said of any name."""
    load, unload, own = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", f"{tenants.me}-new"
    answers: dict[bool, list[Any]] = {False: [], True: []}
    for name in (f"{tenants.them}-one", "nobody-one"):
        for as_admin, told in answers.items():
            asked = [
                tenants.post(load, as_admin=as_admin, lora_name=name, lora_path=f"{tenants.me}-one"),
                tenants.post(load, as_admin=as_admin, lora_name=own, lora_path=name),
                tenants.post(unload, as_admin=as_admin, lora_name=name),
            ]
            told.append([(answer.status_code, answer.text.replace(name, "?")) for answer in asked])
    for (theirs, nobodys), statuses in zip(answers.values(), ([403, 403, 403], [403, 404, 404]), strict=True):
        assert theirs == nobodys
        assert [status for status, _ in theirs] == statuses
    body = {"model": f"{tenants.them}-one", "prompt": "x", "max_tokens": 1}
    assert httpx.post(f"{tenants.served.url}/v1/completions", json=body, headers=tenants.theirs).status_code == 200
    for path, fields in ((load, {"lora_path": f"{tenants.me}-one"}), (unload, {})):
        assert tenants.post(path, as_admin=True, lora_name=own, **fields).status_code == 200, "one's own, however"
    tenants.heard.clear()


def test_no_error_hints_at_names_of_others(tenants: Tenants) -> None:
    """`quokka-onee` is near to one's own adapter and to `quokkb-one`, somebody else's that the store would hint at."""
    for name in (f"{tenants.me}-onee", f"{tenants.me}bb-one", f"{tenants.me}-tw"):
        answer = tenants.ask("POST", "/v1/completions", json={"model": name, "prompt": "x"})
        assert answer.status_code == 404
        assert f"{tenants.near}-one" not in answer.text
        assert "did you mean" not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "{them}-one",
        "{me}-one/../{them}-one",
        "./{them}-one",
        "{me}@/../{them}-one",
        "{root}/{them}-one",
        "{root}/{me}-one/../{them}-one",
        "{me}-one/..",
    ],
)
def test_no_path_leads_to_folders_of_others(tenants: Tenants, path: str) -> None:
    root = tenants.served.world.base_folder.parent
    wanted = path.format(me=tenants.me, them=tenants.them, root=root)
    parameters = {"adapter_id": wanted, "adapter_source": "local", "max_new_tokens": 1}
    answer = tenants.ask("POST", "/generate", json={"inputs": "x", "parameters": parameters})
    assert answer.status_code == 424
    assert str(root) not in answer.text.replace(wanted, "?")
    tenants.heard.clear()


def test_ones_own_folder_is_there(tenants: Tenants) -> None:
    parameters = {"adapter_id": f"{tenants.me}-one", "adapter_source": "local", "max_new_tokens": 1}
    answer = tenants.ask("POST", "/generate", json={"inputs": "x", "parameters": parameters})
    assert answer.status_code == 200


def test_the_prefix_cache_is_no_tenants_window_into_anothers_prompts(tenants: Tenants) -> None:
    body = {"prompt": PROMPT.format(them=tenants.them), "max_tokens": 1, "temperature": 0}
    url = f"{tenants.served.url}/v1/completions"
    theirs = [httpx.post(url, json=body, headers=tenants.theirs, timeout=60) for _ in range(2)]
    mine = [tenants.ask("POST", "/v1/completions", json=body) for _ in range(2)]
    cached = [answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in (*theirs, *mine)]
    assert cached[0] == cached[2] == 0
    assert cached[1] == cached[3] >= 16
    wait_until(
        lambda: [tenants.cached_tokens(tenant) for tenant in (tenants.them, tenants.me)] == [cached[1], cached[3]]
    )


def test_what_the_whole_server_knows_is_not_for_tenants(tenants: Tenants) -> None:
    for path in ("/metrics", "/atoll/state"):
        assert tenants.ask("GET", path).status_code == 403


def test_errors_of_ones_own_tell_nothing_of_others(tenants: Tenants) -> None:
    wrong = [
        ("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 10**6}}),
        ("/generate", {"inputs": {"no": "x"}, "parameters": {"adapter_id": f"{tenants.me}-one"}}),
        ("/v1/completions", {"model": f"{tenants.me}-one", "prompt": "x", "no": 1}),
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
    for canary in (tenants.them, tenants.near, tenants.key_ids[tenants.them], "alpha", "compare"):
        assert canary not in text


def test_the_log_knows_keys_by_their_ids_and_has_no_words(tenants: Tenants) -> None:
    log = tenants.log.getvalue()
    assert f"key_id={tenants.key_ids[tenants.them]}" in log
    assert "The secret of" not in log
    for headers in (tenants.mine, tenants.theirs):
        assert headers["Authorization"].rpartition("-")[2] not in log
