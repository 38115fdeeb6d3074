"""A server with the page over a tiny base and adapters, and a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from playwright.sync_api import Browser

from support.browsing import Watched, chromium, watched_page
from support.pages import ShownSite, shown_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShownSite]:
    """A server without keys; another for each file, because its tests leave runs and votes behind."""
    with shown_site(tmp_path_factory.mktemp("site")) as shown:
        yield shown


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Ends with its file: while playwright runs, no test can start an event loop of its own."""
    with chromium() as started:
        yield started


@pytest.fixture
def tab(site: ShownSite, browser: Browser) -> Iterator[Watched]:
    """A tab of a large screen."""
    with watched_page(browser, site.url) as watched:
        yield watched


@pytest.fixture
def open_tab(site: ShownSite, browser: Browser) -> Callable[..., AbstractContextManager[Watched]]:
    """Opens tabs with other settings of the browser, as a context manager."""

    def opened(**options: Any) -> AbstractContextManager[Watched]:
        return watched_page(browser, site.url, **options)

    return opened
