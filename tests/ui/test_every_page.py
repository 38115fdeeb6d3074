"""What holds for every screen, the login too: nothing serious from axe, nothing wider than a phone, light or dark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from support.browsing import Watched, overflowing, serious_findings, watched_page
from support.pages import ShownSite, shown_site

PATHS = (
    "/ui/try", "/ui/adapters", "/ui/adapters/support", "/ui/leaderboard", "/ui/runs", "/ui/runs/new", "/ui/operations",
    "/ui/cost", "/ui/votes", "/ui/adapters/nobody",
)  # fmt: skip
LOOKS: dict[str, dict[str, Any]] = {
    "screen": {},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}},
    "phone in the dark": {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"},
}


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShownSite]:
    with shown_site(tmp_path_factory.mktemp("closed"), with_keys=True) as shown:
        yield shown


@pytest.mark.parametrize("look", LOOKS)
def test_every_screen_is_accessible_and_fits(open_tab: Callable[..., Any], look: str) -> None:
    with open_tab(**LOOKS[look]) as watched:
        watched.expected.append("404")
        for path in PATHS:
            page = watched.goto(path)
            assert page.locator("h1").count() == 1, path
            assert serious_findings(page) == [], path
            assert overflowing(page) <= 0, path


@pytest.mark.parametrize("look", LOOKS)
def test_one_logs_in_with_the_keyboard_alone(closed: ShownSite, browser: Browser, look: str) -> None:
    key = closed.key()
    with watched_page(browser, closed.url, **LOOKS[look]) as watched:
        watched.expected.append("401")
        page = watched.goto("/ui/adapters?q=support")
        assert serious_findings(page) == []
        assert overflowing(page) <= 0
        expect(page.locator("#key")).to_be_focused()
        type_key(watched, "atoll-not-a-key")
        expect(page.get_by_role("alert")).to_contain_text("not valid")
        assert serious_findings(page) == []
        expect(page.locator("#key")).to_be_focused()
        type_key(watched, key)
        page.wait_for_url("**/ui/adapters?q=support")


def type_key(watched: Watched, key: str) -> None:
    watched.page.keyboard.type(key)
    watched.page.keyboard.press("Enter")
