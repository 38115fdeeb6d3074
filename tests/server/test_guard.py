"""Who gets in: default deny, keys, scopes, hosts, limits and slow connections, over real connections."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import openai
import pytest
from lorax import Client as LoraxClient

from atoll.errors import Forbidden
from atoll.model.load import BaseModel, load_base
from atoll.server.app import create_app
from atoll.server.keys.guard import USE_PATHS
from atoll.server.keys.hosts import HostRule
from atoll.server.keys.keys import KeyLimits, NewKey
from atoll.server.ui.door import Door
from support.guarded import Guarded, guarded_server
from support.servers import serving, wait_until
from support.stub import StubEngine, empty_catalog

ADMIN_PATHS = {"/metrics", "/atoll/state", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"}
PUBLIC_PATHS = {"/health", "/health/live", "/health/ready"}
# The page's login, and files without secrets. Addresses of its parameters have an x in their place.
OPEN_UI_PATHS = {"/ui/login", "/ui/static/x/x"}
ADMIN_UI_PREFIXES = ("/ui/admin/", "/ui/operations")
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]
HOSTS = ["localhost", "127.0.0.1", "evil.example", "a@localhost", "localhost/../health", "127.0.0.1/health", "[::1"]
ASK = {"inputs": "Hello", "parameters": {"max_new_tokens": 2}}
COMPLETE = {"prompt": "Hello", "max_tokens": 2}


@pytest.fixture(scope="module")
def base(tiny_base_folder: Path) -> BaseModel:
    return load_base(str(tiny_base_folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, base: BaseModel) -> Iterator[Guarded]:
    with guarded_server(tmp_path_factory.mktemp("guarded"), base) as server:
        yield server


@pytest.fixture(scope="module")
def use(guarded: Guarded) -> dict[str, str]:
    return guarded.key()


@pytest.fixture(scope="module")
def admin(guarded: Guarded) -> dict[str, str]:
    return guarded.key(scopes=frozenset({"use", "admin"}))


def raw_status(url: str, method: str, target: str, headers: dict[str, str]) -> int:
    """The status of a request whose target and headers go out exactly as they are."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    try:
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        return connection.getresponse().status
    finally:
        connection.close()


def routed(routes: list[Any]) -> set[str]:
    """The paths of routes, of those in routers too."""
    found: set[str] = set()
    for route in routes:
        inner = getattr(route, "original_router", None)
        prefix = route.include_context.prefix if inner is not None else ""
        found |= {prefix + path for path in routed(inner.routes)} if inner is not None else {route.path}
    return found


def all_paths(guarded: Guarded) -> list[str]:
    """Of every route, with something in the place of parameters."""
    paths = set(guarded.app.openapi()["paths"]) | routed(guarded.app.routes)
    assert {"/", "/generate", "/v1/completions", "/openapi.json", "/metrics", "/ui/try", "/ui/login"} <= paths
    return sorted(re.sub(r"\{[^}]*\}", "x", path.replace("{model_id}", "base")) for path in paths)


def disguises(path: str) -> list[str]:
    """The path as somebody might write it who hopes that two readers disagree."""
    name = path.lstrip("/")
    return [
        path,
        "/" + path,
        path + "/",
        path + "?a=/health",
        path + "%00",
        path + "#/health",
        path + ";/health",
        "/%2f" + name,
        "/." + path,
        "/health/.." + path,
        "/health/..%2f" + name,
        "/health%2f.." + path,
        "/health//.." + path,
        "/health/../" + name,
        "/" + name.upper(),
        "/" + name.replace("e", "%65"),
        f"http://health{path}",
        f"http://localhost/health/..{path}",
    ]


def test_no_route_answers_without_a_valid_key(guarded: Guarded) -> None:
    revoked = guarded.key()
    guarded.keys.revoke([guarded.id_of(revoked)])
    expired = {"Authorization": f"Bearer {guarded.keys.create(NewKey(expires_at_s=1))[1]}"}
    for headers, why in ((revoked, "revoked"), (expired, "expired")):
        wait_until(lambda: why in httpx.get(f"{guarded.url}/v1/models", headers=headers).text)  # noqa: B023
    intruders = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic YTpi"}, revoked, expired]
    let_in = []
    for path in all_paths(guarded):
        if path in PUBLIC_PATHS | OPEN_UI_PATHS:
            continue
        for target in disguises(path):
            for number, headers in enumerate(intruders[:2] if path.startswith("/ui/") else intruders):
                # All pairs would be tens of thousands; every method meets every disguise, every host every path.
                for method in METHODS if number == 0 and not path.startswith("/ui/") else ("GET", "POST"):
                    host = HOSTS[(len(target) + number + METHODS.index(method)) % len(HOSTS)]
                    status = raw_status(guarded.url, method, target, {"Host": host, **headers})
                    if status not in (400, 401):
                        let_in.append((method, target, host, headers, status))
    assert let_in == []
    assert guarded.engine.num_submitted == 0


def test_health_alone_is_for_everybody(guarded: Guarded) -> None:
    for path in sorted(PUBLIC_PATHS):
        assert httpx.get(f"{guarded.url}{path}").json() == {"status": "ok"}
        assert raw_status(guarded.url, "GET", path, {"Host": "evil.example"}) == 200
        assert httpx.post(f"{guarded.url}{path}").status_code == 405
        assert httpx.get(f"{guarded.url}{path}/").status_code == 401


def test_every_route_is_for_use_or_known_to_be_for_admins(guarded: Guarded) -> None:
    paths = set(all_paths(guarded)) - PUBLIC_PATHS - OPEN_UI_PATHS
    door = Door()
    for_use = {path for path in paths if path in USE_PATHS or path.startswith("/v1/models/") or door.is_for_use(path)}
    rest = {path for path in paths - for_use if not path.startswith(ADMIN_UI_PREFIXES)}
    assert rest <= ADMIN_PATHS | {"/ui/x"}  # the last one: all addresses below /ui that do not exist


def test_the_pages_open_addresses_lead_to_nothing_else(guarded: Guarded) -> None:
    for path in all_paths(guarded):
        name = path.lstrip("/")
        for target in (
            f"/ui/static/x/..{path}",
            f"/ui/static/..%2f..%2f{name}",
            f"/ui/login/..{path}",
            f"/ui/login%2f..{path}",
        ):
            for method in ("GET", "POST"):
                status = raw_status(guarded.url, method, target, {"Host": "localhost", "Accept": "application/json"})
                assert status in (400, 401, 404, 405), (method, target)
    assert guarded.engine.num_submitted == 0


def test_scopes_are_kept_apart(guarded: Guarded, use: dict[str, str], admin: dict[str, str]) -> None:
    only_admin = guarded.key(scopes=frozenset({"admin"}))
    for path in ("/metrics", "/v1/unknown", "//metrics", "/METRICS"):
        refused = httpx.get(f"{guarded.url}{path}", headers=use)
        assert refused.status_code == 403
        assert "scope admin" in refused.text
    assert httpx.get(f"{guarded.url}/metrics", headers=admin).status_code == 200
    assert httpx.get(f"{guarded.url}/v1/unknown", headers=admin).status_code == 404
    assert httpx.get(f"{guarded.url}/openapi.json", headers=use).status_code == 200
    assert httpx.post(f"{guarded.url}/generate", json=ASK, headers=only_admin).status_code == 403
    assert httpx.post(f"{guarded.url}/generate", json=ASK, headers=use).status_code == 200


def test_a_missing_key_is_told_in_each_dialect(guarded: Guarded) -> None:
    lorax = httpx.post(f"{guarded.url}/generate", json=ASK)
    assert lorax.status_code == 401
    assert lorax.headers["www-authenticate"].startswith("Bearer")
    assert lorax.json().keys() == {"error", "error_type"}
    spoken = httpx.post(f"{guarded.url}/v1/completions", json=COMPLETE)
    assert spoken.status_code == 401
    assert spoken.json()["error"]["code"] == "invalid_api_key"
    assert "Authorization: Bearer" in spoken.json()["error"]["message"]


def test_a_key_comes_in_either_header_but_not_two_keys(guarded: Guarded, use: dict[str, str]) -> None:
    shown = use["Authorization"].removeprefix("Bearer ")
    url = f"{guarded.url}/v1/models"
    for headers in ({"x-api-key": shown}, {"authorization": f"bearer {shown}"}, {"x-api-key": shown, **use}):
        assert httpx.get(url, headers=headers).status_code == 200
    for headers in ({"x-api-key": "other", **use}, {"Authorization": shown}, {"x-api-key": ""}, {"Cookie": shown}):
        assert httpx.get(url, headers=headers).status_code == 401


def test_unmodified_clients_send_keys(guarded: Guarded, use: dict[str, str]) -> None:
    shown = use["Authorization"].removeprefix("Bearer ")
    client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=shown, max_retries=0)
    assert client.completions.create(model="", prompt="Hello", max_tokens=2).choices[0].text == "xx"
    stranger = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="not valid"):
        stranger.completions.create(model="", prompt="Hello", max_tokens=2)
    with pytest.raises(openai.PermissionDeniedError, match="scope admin"):
        client.get("/unknown", cast_to=object)
    assert LoraxClient(guarded.url, headers=use).generate("Hello", max_new_tokens=2).generated_text == "xx"


@pytest.mark.parametrize(("path", "body"), [("/generate", ASK), ("/v1/completions", COMPLETE)])
def test_a_keys_tenant_and_priority_reach_the_engine(guarded: Guarded, path: str, body: dict[str, Any]) -> None:
    for priority in (-3, 7):
        headers = guarded.key(tenant=f"of-{priority}", priority=priority)
        assert httpx.post(guarded.url + path, json=body, headers=headers).status_code == 200
        request = guarded.engine.last_request
        assert request is not None
        assert (request.tenant, request.priority) == (f"of-{priority}", priority)


def test_revoking_works_while_the_server_runs(guarded: Guarded) -> None:
    headers = guarded.key()
    guarded.keys.revoke([guarded.id_of(headers)])
    wait_until(lambda: httpx.get(f"{guarded.url}/v1/models", headers=headers).status_code == 401, timeout_s=5)
    assert "revoked" in httpx.get(f"{guarded.url}/v1/models", headers=headers).text


def test_pages_of_other_sites_are_allowed_nothing(guarded: Guarded, use: dict[str, str]) -> None:
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for headers in (preflight, preflight | use):
        for method in ("OPTIONS", "GET", "POST"):
            answer = httpx.request(method, f"{guarded.url}/v1/models", headers=headers)
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]
            assert method == "GET" or answer.status_code >= 400


# ---- without keys


@pytest.fixture(scope="module")
def open_url(tmp_path_factory: pytest.TempPathFactory, base: BaseModel) -> Iterator[str]:
    with StubEngine() as engine:
        app = create_app(engine, base, empty_catalog(tmp_path_factory.mktemp("open")), hosts=HostRule(["models.lan"]))
        with serving(app) as url:
            yield url


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:3000", 200),
        ("app.localhost", 200),
        ("127.0.0.1:1", 200),
        ("127.9.9.9", 200),
        ("[::1]:80", 200),
        ("models.lan", 200),
        ("Models.LAN.:3000", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("10.0.0.1", 403),
        ("0.0.0.0", 403),
        ("[::ffff:10.0.0.1]", 403),
        ("user@localhost", 403),
        ("localhost:80:80", 403),
        ("", 403),
    ],
)
def test_without_keys_only_names_of_this_machine_are_answered_to(open_url: str, host: str, status: int) -> None:
    assert raw_status(open_url, "GET", "/v1/models", {"Host": host}) == status


def test_without_keys_no_page_of_another_site_gets_in(open_url: str) -> None:
    for origin, status in [("https://evil.example", 403), ("null", 403), ("http://localhost:5173", 200)]:
        answer = httpx.post(f"{open_url}/generate", json=ASK, headers={"Origin": origin})
        assert answer.status_code == status, origin


def test_a_server_that_is_public_on_purpose_answers_to_addresses_but_not_to_any_name() -> None:
    rule = HostRule(any_address=True)

    def scope(host: str) -> dict[str, Any]:
        return {"headers": [(b"host", host.encode())]}

    for host in ("10.0.0.1:3000", "[2001:db8::1]", "localhost"):
        rule.check(scope(host))
    with pytest.raises(Forbidden, match="--allowed-host"):
        rule.check(scope("rebound.example"))


# ---- limits


def test_requests_beyond_a_keys_limit_are_told_when_to_come_back(guarded: Guarded) -> None:
    headers = guarded.key(limits=KeyLimits(requests_per_minute=3))
    answers = [httpx.get(f"{guarded.url}/v1/models", headers=headers) for _ in range(5)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) >= 2
    assert 1 <= int(refused[-1].headers["retry-after"]) <= 60
    assert refused[-1].json()["error"]["code"] == "rate_limit_exceeded"


def test_tokens_beyond_a_keys_limit_are_refused_before_the_engine_has_them(guarded: Guarded) -> None:
    headers = guarded.key(limits=KeyLimits(tokens_per_minute=20))
    before = guarded.engine.num_submitted
    first = httpx.post(f"{guarded.url}/v1/completions", json=COMPLETE | {"max_tokens": 300}, headers=headers)
    second = httpx.post(f"{guarded.url}/v1/completions", json=COMPLETE, headers=headers)
    assert (first.status_code, second.status_code) == (200, 429)
    assert int(second.headers["retry-after"]) > 600  # 280 tokens in debt, 20 a minute
    assert guarded.engine.num_submitted == before + 1
    other = httpx.post(f"{guarded.url}/generate", json=ASK, headers=headers)
    assert (other.status_code, other.json()["error_type"]) == (429, "overloaded")


def test_requests_at_once_are_limited_and_freed_when_a_client_leaves(guarded: Guarded) -> None:
    headers = guarded.key(limits=KeyLimits(concurrency=1))
    body = COMPLETE | {"max_tokens": 400, "stream": True}
    guarded.engine.pause_s = 0.05
    try:
        with httpx.stream("POST", f"{guarded.url}/v1/completions", json=body, headers=headers) as answer:
            assert answer.status_code == 200
            assert httpx.get(f"{guarded.url}/v1/models", headers=headers).status_code == 429
        wait_until(lambda: httpx.get(f"{guarded.url}/v1/models", headers=headers).status_code == 200)
    finally:
        guarded.engine.pause_s = 0.0


def test_refusals_are_counted_by_their_reason(guarded: Guarded, admin: dict[str, str]) -> None:
    def count(reason: str) -> float:
        lines = httpx.get(f"{guarded.url}/metrics", headers=admin).text.splitlines()
        found = [line for line in lines if f'reason="{reason}"' in line and "refused_total" in line]
        return sum(float(line.split()[-1]) for line in found)

    before = count("invalid_api_key")
    for _ in range(3):
        httpx.get(f"{guarded.url}/v1/models")
    assert count("invalid_api_key") == before + 3


def test_the_schema_is_json_for_whoever_has_a_key(guarded: Guarded, use: dict[str, str]) -> None:
    schema = json.loads(httpx.get(f"{guarded.url}/openapi.json", headers=use).text)
    assert "/v1/completions" in schema["paths"]
