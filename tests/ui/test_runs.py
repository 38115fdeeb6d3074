"""Runs in a browser: from an uploaded file to an adapter that answers; stop and resume; who may do what."""

from __future__ import annotations

import http.client
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from playwright.sync_api import Page, expect

from atoll.training.events import EventLog
from support.browsing import Watched, overflowing, serious_findings
from support.pages import ShownSite, shown_site
from support.servers import wait_until

WORDS = {"billing": ["invoice", "charge", "refund", "paid"], "shipping": ["parcel", "late", "box", "courier"]}


def tickets(folder: Path, num_rows: int = 60) -> Path:
    rng = random.Random(0)
    rows = ["text,team"]
    for number in range(num_rows):
        team = ("billing", "shipping")[number % 2]
        rows.append(f"{' '.join(rng.choices(WORDS[team], k=rng.randint(2, 9)))} {number},{team}")
    path = folder / "My Tickets.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def upload(page: Page, path: Path) -> None:
    page.goto(re.match(r"https?://[^/]+", page.url)[0] + "/ui/admin/new-run")  # type: ignore[index]
    page.locator("#file").set_input_files(path)
    page.wait_for_url("**/ui/admin/new-run?upload=*")


def wait_for_status(page: Page, status: str) -> None:
    expect(page.locator("#run")).to_have_attribute("data-status", status, timeout=180_000)


@pytest.mark.slow
def test_a_run_from_an_uploaded_file_trains_in_sight_and_its_adapter_answers(
    site: ShownSite, tab: Watched, tmp_path: Path
) -> None:
    page = tab.goto("/ui/runs")
    upload(page, tickets(tmp_path))
    expect(page.locator("#target")).to_have_value("team")
    page.locator("#epochs").fill("2")
    page.locator("#epochs").blur()
    page.wait_for_url("**epochs=2**")
    page.get_by_role("button", name="Start the run").click()
    page.wait_for_url("**/ui/runs/my-tickets")
    page.reload()
    wait_for_status(page, "finished")
    expect(page.locator("#fact-done")).to_have_text("100 %")
    expect(page.locator("#chart-loss canvas")).to_be_visible()
    assert serious_findings(page) == []
    asked = {"inputs": {"text": "late parcel"}, "parameters": {"adapter_id": "my-tickets"}}
    assert httpx.post(f"{site.url}/generate", json=asked).status_code == 200
    page.get_by_role("button", name="Evaluate").click()
    wait_for_status(page, "evaluating")
    wait_for_status(page, "finished")
    page.get_by_role("link", name="Scores").click()
    expect(page.locator("table.board")).to_contain_text("my-tickets")


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_from_its_checkpoint(site: ShownSite, tab: Watched, tmp_path: Path) -> None:
    page = tab.goto("/ui/runs")
    upload(page, tickets(tmp_path, 200))
    page.locator("#name").fill("stopped")
    page.locator("#epochs").fill("40")
    page.locator("#epochs").blur()
    page.wait_for_url("**epochs=40**")
    page.get_by_role("button", name="Start the run").click()
    page.wait_for_url("**/ui/runs/stopped")
    page.wait_for_selector("#chart-loss canvas", timeout=180_000)
    page.get_by_role("button", name="Stop").click()
    wait_for_status(page, "stopped")
    assert list((site.runs / "stopped").glob("checkpoint-*"))
    page.get_by_role("button", name="Resume").click()
    wait_for_status(page, "running")
    expect(page.locator("#output")).to_contain_text("resumed from", timeout=180_000)
    page.get_by_role("button", name="Stop").click()
    wait_for_status(page, "stopped")


def test_columns_and_prompt_are_chosen_with_a_preview_in_view(tab: Watched, tmp_path: Path) -> None:
    page = tab.goto("/ui/runs")
    upload(page, tickets(tmp_path))
    expect(page.locator("#name")).to_have_value("my-tickets")
    expect(page.locator(".xray mark").first).to_be_visible()
    assert serious_findings(page) == []
    page.locator("#template").fill("Which team? {text}")
    page.locator("#template").press("End")
    page.locator("#template").press_sequentially(" ->")
    expect(page.locator(".xray").first).to_contain_text("Which team?")
    page.locator("#template").fill("{nothing}")
    page.locator("#template").blur()
    expect(page.locator("#outcome .problem")).to_contain_text("nothing")
    page.reload()
    expect(page.locator("#template")).to_have_value("{nothing}")


def test_a_file_of_another_kind_is_refused_in_words(tab: Watched, tmp_path: Path) -> None:
    page = tab.goto("/ui/admin/new-run")
    assert serious_findings(page) == []
    (tmp_path / "data.pkl").write_bytes(b"\x80")
    tab.expected.append("422")
    page.locator("#file").set_input_files(tmp_path / "data.pkl")
    expect(page.locator("#notice")).to_contain_text("this kind of file cannot be read")


# ---- a run of somebody else's, made of events alone


@pytest.fixture
def foreign(site: ShownSite) -> Iterator[EventLog]:
    """A run that another process works on."""
    with EventLog(site.runs / "foreign", resume=False) as log:
        log.write({"event": "start", "adapters": ["colors"], "resumed": False})
        log.write({"event": "base", "name": "tiny", "digest": "sha256:0", "num_params": 5})
        log.write({"event": "plan", "adapter": "colors", "total_steps": 10, "planned_tokens": 1000.0})
        for step in range(1, 5):
            step_of(log, step)
        yield log


def step_of(log: EventLog, step: int) -> None:
    log.write(
        {
            "event": "progress", "name": "colors", "step": step, "total_steps": 10, "step_loss": 1 / step,
            "validation_loss": 0.5 if step == 4 else None, "learning_rate": 1e-3, "grad_norm": 0.5,
            "num_tokens": 100 * step, "seconds": float(step), "cost_usd": 0.001 * step, "finished": False,
        }
    )  # fmt: skip


def test_a_run_that_was_started_elsewhere_is_shown_and_cannot_be_stopped_here(
    site: ShownSite, tab: Watched, foreign: EventLog
) -> None:
    page = tab.goto("/ui/runs/foreign")
    expect(page.locator("#fact-done")).to_have_text("40 %")
    expect(page.locator("#chart-loss canvas")).to_be_visible()
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    assert serious_findings(page) == []
    token = page.locator('meta[name="csrf"]').get_attribute("content") or ""
    answer = httpx.post(f"{site.url}/ui/admin/runs/foreign/stop", headers={"x-atoll-csrf": token})
    assert answer.status_code == 422


def test_only_new_points_are_sent_again(site: ShownSite, foreign: EventLog) -> None:
    first = httpx.get(f"{site.url}/ui/runs/foreign/live").json()
    assert [point[1] for point in first["points"]["colors"]] == [1, 2, 3, 4]
    step_of(foreign, 5)
    after = first["points"]["colors"][-1][0]
    second = httpx.get(f"{site.url}/ui/runs/foreign/live", params={"after": after}).json()
    assert [point[1] for point in second["points"]["colors"]] == [5]
    assert second["facts"]["cost"] == "$0.0050"


@pytest.mark.parametrize("name", ["unknown", "..", "%2e%2e", ".uploads", "A", "a%2fb"])
def test_only_runs_have_pages(site: ShownSite, name: str) -> None:
    connection = http.client.HTTPConnection(site.url.removeprefix("http://"))
    connection.request("GET", f"/ui/runs/{name}")
    assert connection.getresponse().status == 404
    connection.close()


def test_damaged_events_do_not_hide_the_other_runs(site: ShownSite, foreign: EventLog) -> None:
    broken = site.runs / "damaged"
    broken.mkdir(exist_ok=True)
    (broken / "events.jsonl").write_text("not json\n")
    html = httpx.get(f"{site.url}/ui/runs", headers={"accept": "text/html"}).text
    assert "foreign" in html
    (broken / "events.jsonl").unlink()


def test_a_phone_shows_list_and_run(open_tab: Callable[..., Any], foreign: EventLog) -> None:
    with open_tab(viewport={"width": 360, "height": 740}, color_scheme="dark") as watched:
        for path in ("/ui/runs", "/ui/runs/foreign", "/ui/admin/new-run"):
            page = watched.goto(path)
            assert overflowing(page) <= 0, path
            assert serious_findings(page) == [], path


def test_without_scripts_the_figures_are_there(site: ShownSite, foreign: EventLog) -> None:
    html = httpx.get(f"{site.url}/ui/runs/foreign", headers={"accept": "text/html"}).text
    assert "40 %" in html
    assert "0.2500" in html


def test_a_new_run_takes_no_name_that_others_use_or_that_answers_already(tmp_path: Path) -> None:
    with shown_site(tmp_path, with_keys=True) as closed:
        page = httpx.get(f"{closed.url}/ui/login").text
        token = re.findall(r'<meta name="csrf" content="([^"]+)">', page)[0]
        scopes = frozenset({"use", "admin"})
        narrow, wide = closed.key(scopes=scopes, adapters=("acme-*",)), closed.key(scopes=scopes)

        def start(key: str, name: str) -> tuple[int, str]:
            headers = {"x-api-key": key, "x-atoll-csrf": token}
            wait_until(lambda: httpx.get(f"{closed.url}/ui/runs", headers=headers).status_code == 200)
            answer = httpx.post(f"{closed.url}/ui/admin/new-run", data={"name": name, "task": "none"}, headers=headers)
            return answer.status_code, answer.text

        for name in ("sentiment", "nobodys"):
            status, text = start(narrow, name)
            assert status == 403
            assert "may not use an adapter named" in text
            assert "choose another name" in text
        status, text = start(wide, "sentiment")
        assert status == 422
        assert "an adapter named sentiment already" in text
        for key, name in ((narrow, "acme-tickets"), (wide, "nobodys")):
            assert "an adapter named" not in start(key, name)[1]  # the task is what is wrong


def test_changes_need_the_scope_admin_and_the_token_of_the_page(tmp_path: Path) -> None:
    with shown_site(tmp_path, with_keys=True) as closed:
        use, admin = (closed.key(scopes=frozenset(scopes)) for scopes in ({"use"}, {"use", "admin"}))
        paths = [
            "/ui/admin/new-run",
            "/ui/admin/uploads?title=a.csv",
            "/ui/admin/runs/x/stop",
            "/ui/admin/runs/x/resume",
        ]
        for path in paths:
            for key, status in ((use, 403), (admin, 403), ("wrong", 401)):
                headers = {"x-api-key": key}
                assert httpx.post(f"{closed.url}{path}", headers=headers, content=b"a").status_code == status, path
        for path in ("/ui/operations", "/ui/operations/looks", "/ui/admin/new-run"):
            assert httpx.get(f"{closed.url}{path}", headers={"x-api-key": use}).status_code == 403
        with EventLog(closed.runs / "secret", resume=False) as log:
            log.write({"event": "start", "adapters": ["hidden-adapter"], "resumed": False})
        narrow = {"x-api-key": closed.key(scopes=frozenset({"use"}), adapters=("public-*",))}
        assert "secret" not in httpx.get(f"{closed.url}/ui/runs", headers=narrow).text
        assert httpx.get(f"{closed.url}/ui/runs/secret", headers=narrow).status_code == 404
        assert httpx.get(f"{closed.url}/ui/runs/secret/live", headers=narrow).status_code == 404


def test_a_key_for_some_adapters_changes_no_run_of_others(tmp_path: Path) -> None:
    with shown_site(tmp_path, with_keys=True) as closed:
        token = re.findall(r'<meta name="csrf" content="([^"]+)">', httpx.get(f"{closed.url}/ui/login").text)[0]
        scopes = frozenset({"use", "admin"})
        narrow, wide = closed.key(scopes=scopes, adapters=("acme-*",)), closed.key(scopes=scopes)
        for name, adapters in (("acme-begun", ["acme-begun", "theirs"]), ("new", [])):
            with EventLog(closed.runs / name, resume=False) as log:
                log.write({"event": "start", "adapters": adapters, "resumed": False})
            for verb in ("stop", "resume", "evaluate"):
                for key, status in ((narrow, 403), (wide, 422)):
                    headers = {"x-api-key": key, "x-atoll-csrf": token}
                    wait_until(lambda headers=headers: httpx.get(f"{closed.url}/ui/runs", headers=headers).is_success)
                    answer = httpx.post(f"{closed.url}/ui/admin/runs/{name}/{verb}", headers=headers)
                    assert answer.status_code == status
