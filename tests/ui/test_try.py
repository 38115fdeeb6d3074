"""The Try page in a browser: streams, comparisons, votes, reloads; by keyboard, on a phone, in the dark."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx2 as httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from atoll.model.load import load_base
from atoll.server.app import create_app
from atoll.server.ui.site import UiSettings
from support.browsing import Watched, overflowing, serious_findings, watched_page
from support.pages import ShownSite
from support.servers import serving, wait_until
from support.stub import StubEngine, empty_catalog

Opener = Callable[..., AbstractContextManager[Watched]]
DONE_MS = 60_000


def run(page: Page) -> None:
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#status")).to_have_text("done", timeout=DONE_MS)


def test_a_newcomer_sees_an_adapter_beside_its_base_with_one_click(tab: Watched, site: ShownSite) -> None:
    page = tab.goto("/")
    assert page.get_by_role("heading", level=1).inner_text() in ("glue_qnli", "support")
    run(page)
    columns = page.locator("article")
    expect(columns).to_have_count(2)
    expect(columns.nth(1).get_by_role("heading")).to_have_text("base")
    for number in range(2):
        expect(columns.nth(number).locator(".figures")).to_contain_text("to the first token")
    answer = columns.nth(0).locator(".text").inner_text()
    adapter = page.get_by_role("heading", level=1).inner_text()
    inputs = {f.get_attribute("name")[3:]: f.input_value() for f in page.locator("#try textarea").all()}  # type: ignore[index]
    body = {"inputs": inputs, "parameters": {"adapter_id": adapter}}
    assert answer.strip() == httpx.post(f"{site.url}/generate", json=body).json()["generated_text"].strip()
    assert columns.nth(1).locator("ins, del").count() or "the same" in columns.nth(1).inner_text()
    assert serious_findings(page) == []


def test_the_address_holds_the_whole_state(tab: Watched) -> None:
    page = tab.goto("/ui/try?adapter=compare")
    page.get_by_label("left").fill("a & b")
    page.get_by_label("right").fill("c\nd")
    page.get_by_label("Contender 3").select_option("alpha")
    page.get_by_role("group", name="Contenders").get_by_label("base").uncheck()
    address = page.url
    assert "alpha" in address
    page.goto("about:blank")
    page.goto(address)
    assert page.get_by_label("left").input_value() == "a & b"
    assert page.get_by_label("right").input_value() == "c\nd"
    run(page)
    assert page.locator("article h2").all_inner_texts() == ["compare", "alpha"]


def test_a_text_too_long_for_an_address_survives_a_reload(tab: Watched) -> None:
    page = tab.goto("/ui/try?adapter=sentiment")
    text = "word " * 3000
    page.get_by_label("text", exact=True).fill(text)
    page.reload()
    assert page.get_by_label("text", exact=True).input_value() == text


def test_tokens_are_counted_while_one_types_and_texts_to_copy_follow(tab: Watched) -> None:
    page = tab.goto("/ui/try?adapter=sentiment&in.text=a")
    before = page.locator("#tokens").inner_text()
    page.get_by_label("text", exact=True).fill("a quick brown fox, it's here")
    expect(page.locator("#tokens")).not_to_have_text(before)
    page.get_by_text("Copy as").click()
    expect(page.locator("#copy-1")).to_contain_text("a quick brown fox")


def test_the_picker_finds_adapters_by_name_and_category(tab: Watched) -> None:
    page = tab.goto("/ui/try")
    page.get_by_label("Search adapters").fill("queue that a customer")
    expect(page.locator(".groups li:visible")).to_have_count(2)  # the adapter, and the base, which is always there
    assert "q=queue" in page.url
    page.reload()
    expect(page.locator(".groups li:visible")).to_have_count(2)
    page.get_by_role("link", name="support").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("support")


def test_a_reload_in_mid_stream_comes_back_to_the_answers(
    browser: Browser, tmp_path: Path, tiny_base_folder: Path
) -> None:
    base = load_base(str(tiny_base_folder), device="cpu", dtype="float32")
    with StubEngine(pause_s=0.02, text="<script>alert(1)</script><img src=x onerror=alert(2)> ") as engine:
        settings = UiSettings(runs=tmp_path / "runs", votes=tmp_path / "votes")
        app = create_app(engine, base, empty_catalog(tmp_path), ui=settings)
        with serving(app) as url, watched_page(browser, url) as tab:
            page = tab.goto("/ui/try?adapter=base&prompt=Hi&max_new_tokens=120")
            page.on("dialog", lambda dialog: tab.console_errors.append(f"a script has run: {dialog.message}"))
            page.get_by_role("button", name="Run", exact=True).click()
            expect(page.locator("article .text")).to_contain_text("alert(1)")
            aborted = engine.num_aborted
            page.reload()
            expect(page.locator("#status")).to_have_text("done", timeout=DONE_MS)
            # Model output is text: all of it is there, and none of it is an element.
            text = page.locator("article .text")
            assert text.inner_text().count("<script>alert(1)</script>") == 120
            assert text.locator("script, img").count() == 0
            assert engine.num_aborted == aborted + 1

            page.reload()
            expect(page.locator("article")).to_have_count(0)  # what has ended does not begin again
            page.get_by_role("button", name="Run", exact=True).click()
            expect(page.locator("article .text")).to_contain_text("alert(1)")
            page.get_by_role("button", name="Stop").click()
            expect(page.locator("#status")).to_have_text("stopped")
            wait_until(lambda: engine.num_aborted == aborted + 2)


def test_a_blind_vote_hides_the_names_is_kept_and_exported(tab: Watched, site: ShownSite) -> None:
    page = tab.goto("/ui/try?adapter=support&in.message=My+parcel+is+late&with=support&with=base&blind=1")
    run(page)
    assert page.locator("article h2").all_inner_texts() == ["Answer A", "Answer B"]
    answers = [column.inner_text() for column in page.locator("article .text").all()]
    page.get_by_role("group", name="Vote").get_by_role("button", name="B", exact=True).click()
    expect(page.locator("#status")).to_have_text("your vote is kept")
    labels = page.locator("article h2").all_inner_texts()
    assert sorted(label.removesuffix(" ✓") for label in labels) == ["base", "support"]
    assert labels[1].endswith("✓")
    page.get_by_role("link", name="Votes").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Export as JSONL").click()
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    assert last["chosen"].strip() == answers[1].strip()
    assert (last["chosen_adapter"], last["adapter"]) == (labels[1].removesuffix(" ✓"), "support")
    assert serious_findings(page) == []


def test_everything_can_be_done_by_keyboard(tab: Watched) -> None:
    page = tab.goto("/ui/try?adapter=sentiment")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.name || ''"))
        if seen[-1] == "in.text":
            break
    assert {"q", "category"} <= set(seen)
    page.keyboard.type("good")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_have_text("done", timeout=DONE_MS)
    expect(page.locator("article")).to_have_count(2)


@pytest.mark.parametrize("path", ["/ui/try?adapter=glue_qnli", "/ui/adapters", "/ui/adapters/support", "/ui/votes"])
def test_pages_fit_a_phone_and_the_dark(open_tab: Opener, path: str) -> None:
    with open_tab(viewport={"width": 360, "height": 740}, color_scheme="dark", has_touch=True) as tab:
        page = tab.goto(path)
        assert overflowing(page) == 0
        assert serious_findings(page) == []
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(int(part) for part in background[4:-1].split(",")) < 60


def test_the_theme_is_a_choice_that_stays(tab: Watched) -> None:
    page = tab.goto("/ui/adapters")
    page.get_by_label("Switch between light and dark").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.goto(tab.origin + "/ui/votes")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert serious_findings(page) == []


def test_without_javascript_lists_and_links_are_there(open_tab: Opener) -> None:
    with open_tab(java_script_enabled=False) as tab:
        page = tab.goto("/ui/try")
        expect(page.get_by_role("link", name="sentiment")).to_be_visible()
        assert "Answers need JavaScript" in page.content()
        page.goto(tab.origin + "/ui/adapters?q=sentim")
        expect(page.locator(".gallery li")).to_have_count(1)


def test_an_error_is_told_in_its_column(tab: Watched) -> None:
    page = tab.goto("/ui/try?adapter=sentiment&in.text=x&with=base&max_new_tokens=9999")
    assert "new tokens is not valid" in page.locator(".problem").inner_text()
    tab.expected.append("422")
