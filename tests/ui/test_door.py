"""How browsers come in: login, sessions, tokens against other sites, scopes, and the headers of every page."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from atoll.model.load import load_base
from atoll.server.app import create_app
from atoll.server.keys.keys import KeyLimits
from atoll.server.ui.sessions import COOKIE, LIFETIME_S, MAX_SESSIONS, LoginLimiter, Sessions
from support.pages import ShownSite, shown_site
from support.servers import serving, wait_until
from support.stub import StubEngine, empty_catalog

BROWSER = {"accept": "text/html,application/xhtml+xml"}
ADMIN = frozenset({"use", "admin"})


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShownSite]:
    with shown_site(tmp_path_factory.mktemp("closed"), with_keys=True) as shown:
        yield shown


def browser_of(site: ShownSite) -> httpx.Client:
    return httpx.Client(base_url=site.url, headers=BROWSER, follow_redirects=True)


def token_in(page: str) -> str:
    return html.unescape(re.findall(r'<meta name="csrf" content="([^"]+)">', page)[0])


def log_in(site: ShownSite, client: httpx.Client, key: str, target: str = "/ui/try") -> httpx.Response:
    token = token_in(client.get("/ui/login").text)
    return client.post("/ui/login", data={"key": key, "next": target, "csrf": token})


def new_browser(site: ShownSite, **fields: object) -> httpx.Client:
    """A browser that has logged in with a new key."""
    key = site.key(**fields)
    headers = {"authorization": f"Bearer {key}"}
    wait_until(lambda: httpx.get(f"{site.url}/v1/models", headers=headers).status_code not in (401,))
    client = browser_of(site)
    assert log_in(site, client, key).status_code == 200
    return client


def test_the_front_door_is_a_page_for_browsers_and_loraxs_for_programs(site: ShownSite) -> None:
    assert (httpx.get(f"{site.url}/").status_code, httpx.get(f"{site.url}/").content) == (200, b"")
    answer = httpx.get(f"{site.url}/?adapter=support", headers=BROWSER)
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/try?adapter=support")


def test_a_server_without_the_page_has_none_of_it(tmp_path: Path, tiny_base_folder: Path) -> None:
    base = load_base(str(tiny_base_folder), device="cpu", dtype="float32")
    with StubEngine() as engine, serving(create_app(engine, base, empty_catalog(tmp_path))) as url:
        assert httpx.get(f"{url}/", headers=BROWSER).content == b""
        for path in ("/ui/try", "/ui/login", "/ui/static/x/app.css"):
            assert httpx.get(url + path, headers=BROWSER).status_code == 404


def test_every_page_has_the_strict_headers(site: ShownSite) -> None:
    for path in ("/ui/try", "/ui/adapters", "/ui/adapters/support", "/ui/votes", "/ui/nothing"):
        headers = httpx.get(site.url + path, headers=BROWSER).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"


def test_a_browser_without_a_session_is_led_to_the_login_and_back(closed: ShownSite) -> None:
    client = browser_of(closed)
    asked = client.get("/ui/adapters?q=support", follow_redirects=False)
    assert asked.headers["location"] == "/ui/login?next=%2Fui%2Fadapters%3Fq%3Dsupport"
    assert httpx.get(f"{closed.url}/ui/adapters").status_code == 401  # a program is told
    page = client.get("/ui/adapters?q=support")
    assert 'value="/ui/adapters?q=support"' in page.text
    key = closed.key()
    wait_until(lambda: "Log out" in log_in(closed, client, key, "/ui/adapters?q=support").text)
    assert client.get("/ui/adapters?q=support", follow_redirects=False).status_code == 200


def test_the_session_is_not_the_key_and_the_cookie_is_out_of_reach(closed: ShownSite) -> None:
    key = closed.key()
    client = browser_of(closed)
    wait_until(lambda: log_in(closed, client, key).status_code == 200 and COOKIE in client.cookies)
    token = token_in(client.get("/ui/try").text)
    answer = client.post("/ui/login", data={"key": key, "next": "/ui/try", "csrf": token}, follow_redirects=False)
    cookie = answer.headers["set-cookie"]
    assert key not in cookie
    assert {"HttpOnly", "SameSite=strict", "Path=/ui"} <= {part.strip() for part in cookie.split(";")}
    secure = client.post(
        "/ui/login",
        data={"key": key, "next": "/ui/try", "csrf": token_in(client.get("/ui/try").text)},
        headers={"x-forwarded-proto": "https"},
        follow_redirects=False,
    )
    assert "Secure" in secure.headers["set-cookie"]


def test_a_session_opens_the_page_and_not_the_api(closed: ShownSite) -> None:
    client = new_browser(closed)
    cookie = {"cookie": f"{COOKIE}={client.cookies[COOKIE]}"}
    assert httpx.get(f"{closed.url}/ui/try", headers=cookie).status_code == 200
    for path in ("/v1/models", "/generate", "/metrics", "/openapi.json"):
        assert httpx.get(closed.url + path, headers=cookie).status_code == 401
    for wrong in ("x", client.cookies[COOKIE] + "x", ""):
        assert httpx.get(f"{closed.url}/ui/try", headers={"cookie": f"{COOKIE}={wrong}"}).status_code == 401


def test_a_revoked_key_ends_its_sessions_and_so_does_logging_out(closed: ShownSite) -> None:
    assert closed.keys is not None
    client, other = new_browser(closed, name="mine"), new_browser(closed, name="yours")
    (mine,) = [key for key in closed.keys.list() if key.name == "mine"]
    closed.keys.revoke([mine.key_id])
    wait_until(lambda: client.get("/ui/try", follow_redirects=False).status_code == 303)
    assert other.get("/ui/try", follow_redirects=False).status_code == 200
    cookie = {"cookie": f"{COOKIE}={other.cookies[COOKIE]}"}
    other.post("/ui/logout", data={"csrf": token_in(other.get("/ui/try").text)})
    assert httpx.get(f"{closed.url}/ui/try", headers=cookie).status_code == 401


def test_what_changes_something_needs_the_token_and_our_own_origin(closed: ShownSite) -> None:
    client = new_browser(closed, scopes=ADMIN)
    token = token_in(client.get("/ui/try").text)
    path, good = "/ui/admin/adapters/support/load", {"x-atoll-csrf": token}
    stranger = token_in(httpx.get(f"{closed.url}/ui/login").text)
    bad = [
        {},
        {"x-atoll-csrf": "wrong"},
        {"x-atoll-csrf": stranger},
        good | {"origin": "https://evil.example"},
        good | {"origin": "null"},
        good | {"sec-fetch-site": "cross-site"},
        good | {"sec-fetch-site": "same-site"},
    ]
    for headers in bad:
        assert client.post(path, headers=headers, follow_redirects=False).status_code == 403, headers
    for headers in (good, good | {"origin": closed.url, "sec-fetch-site": "same-origin"}):
        assert client.post(path, headers=headers, follow_redirects=False).status_code == 303


def test_without_keys_other_sites_cannot_send_forms_either(site: ShownSite) -> None:
    data = {"adapter": "support", "in.message": "Hi", "with": "base"}
    assert httpx.post(f"{site.url}/ui/answers", data=data).status_code == 403
    token = token_in(httpx.get(f"{site.url}/ui/try").text)
    foreign = {"x-atoll-csrf": token, "origin": "http://localhost:5173"}
    assert httpx.post(f"{site.url}/ui/answers", data=data, headers=foreign).status_code == 403
    assert httpx.post(f"{site.url}/ui/answers", data=data, headers={"x-atoll-csrf": token}).status_code == 200


def test_the_scope_use_sees_no_admin_action_and_may_do_none(closed: ShownSite) -> None:
    client = new_browser(closed)
    page = client.get("/ui/adapters/support").text
    assert "Unload" not in page
    assert "/ui/operations" not in page
    headers = {"x-atoll-csrf": token_in(page)}
    for action in ("load", "pin", "unload", "delete"):
        assert client.post(f"/ui/admin/adapters/support/{action}", headers=headers).status_code == 403
    assert "support" in closed.store.names()


def test_a_key_sees_its_own_adapters_alone(closed: ShownSite) -> None:
    client = new_browser(closed, adapters=("sup*",), scopes=ADMIN)
    gallery = client.get("/ui/adapters").text
    assert "support" in gallery
    assert "sentiment" not in gallery
    assert client.get("/ui/adapters/sentiment").status_code == 404
    assert client.get("/ui/try?adapter=sentiment").status_code == 404
    headers = {"x-atoll-csrf": token_in(gallery)}
    assert client.post("/ui/admin/adapters/sentiment/unload", headers=headers).status_code == 404
    data = {"adapter": "support", "in.message": "Hi", "with": "sentiment"}
    assert "no adapter 'sentiment'" in client.post("/ui/answers", data=data, headers=headers).text


def test_limits_of_a_key_hold_on_the_page(closed: ShownSite) -> None:
    client = new_browser(closed, limits=KeyLimits(requests_per_minute=4))
    answers = [client.get("/ui/try") for _ in range(6)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert "used up its 4 requests" in refused[0].text
    assert refused[0].headers["content-security-policy"]


def test_a_browser_is_told_on_a_page_what_it_may_not_do(closed: ShownSite) -> None:
    answer = new_browser(closed).get("/ui/operations")
    assert answer.status_code == 403
    assert "scope admin" in answer.text
    assert answer.text.startswith("<!doctype html>")


def test_nobody_is_led_elsewhere_after_the_login(closed: ShownSite) -> None:
    key = closed.key()
    elsewhere = ("https://evil.example", "//evil.example", "/ui/..//evil.example", "/ui/\\evil", "/v1/models")
    for target in (*elsewhere, "/ui/login"):
        client = browser_of(closed)
        wait_until(lambda: log_in(closed, client, key).status_code == 200)  # noqa: B023
        token = token_in(client.get("/ui/try").text)
        data = {"key": key, "next": target, "csrf": token}
        answer = client.post("/ui/login", data=data, follow_redirects=False)
        assert answer.headers["location"] == "/ui/try", target


def test_a_wrong_key_is_told_and_not_kept(closed: ShownSite) -> None:
    client = browser_of(closed)
    answer = log_in(closed, client, "atoll-secret-guess")
    assert answer.status_code == 401
    assert "not valid" in answer.text
    assert "atoll-secret-guess" not in answer.text
    assert COOKIE not in client.cookies


def test_wrong_keys_of_others_at_the_same_address_keep_no_right_key_out(closed: ShownSite) -> None:
    client, key = browser_of(closed), closed.key()
    wait_until(lambda: COOKIE in client.cookies or log_in(closed, client, key).status_code == 200)
    stranger = browser_of(closed)
    statuses = [log_in(closed, stranger, "atoll-secret-guess").status_code for _ in range(12)]
    assert statuses[-1] == 429
    assert log_in(closed, browser_of(closed), key).status_code == 200


@pytest.mark.parametrize("path", ["/ui/login", "/ui/static/x/app.css", "/health"])
def test_whoever_shows_no_key_may_send_little(closed: ShownSite, path: str) -> None:
    token = token_in(browser_of(closed).get("/ui/login").text)
    body = {"key": "x", "next": "/ui/try", "csrf": token, "more": "x" * 4096}
    assert httpx.post(closed.url + path, data=body).status_code == 413


def test_the_longest_address_leads_through_the_login(closed: ShownSite) -> None:
    key = closed.key()
    for target in ("/ui/try?in.message=" + "%20" * 300, "/ui/try?in.message=" + "%20" * 3000):
        client = browser_of(closed)
        wait_until(lambda: COOKIE in client.cookies or log_in(closed, client, key).status_code == 200)  # noqa: B023
        page = browser_of(closed).get(target).text
        shown = html.unescape(re.findall(r'name="next" value="([^"]*)"', page)[0])
        assert shown == (target if len(target) <= 1000 else "/ui/try")
        data = {"key": key, "next": shown, "csrf": token_in(client.get("/ui/login").text)}
        assert client.post("/ui/login", data=data, follow_redirects=False).headers["location"] == shown


def test_sessions_end_after_their_time_and_a_keys_oldest_one_gives_way() -> None:
    now_s = 0.0
    sessions = Sessions(lambda: now_s)
    session_id = sessions.start("key")
    assert sessions.key_id(session_id) == "key"
    now_s = LIFETIME_S
    assert sessions.key_id(session_id) is None
    other = sessions.start("other")
    own = [sessions.start("key") for _ in range(10 * MAX_SESSIONS)]
    assert [sessions.key_id(session_id) for session_id in own[-MAX_SESSIONS:]] == ["key"] * MAX_SESSIONS
    assert {sessions.key_id(session_id) for session_id in own[:-MAX_SESSIONS]} == {None}
    assert sessions.key_id(other) == "other"


def test_wrong_keys_are_limited_for_each_address() -> None:
    now_s = 0.0
    limiter = LoginLimiter(lambda: now_s)
    for _ in range(10):
        limiter.check("1.1.1.1")
        limiter.failed("1.1.1.1")
    with pytest.raises(Exception, match="too many wrong keys"):
        limiter.check("1.1.1.1")
    limiter.check("2.2.2.2")
    now_s = 60.0
    limiter.check("1.1.1.1")
