"""A real browser on a real server's page, and what it must never do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from support.npm import npm_packages

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NPM = Path(__file__).parents[1] / "ui" / "npm"
_SERIOUS = ("serious", "critical")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium without a screen. Skips the test where there is none."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@dataclass
class Watched:
    """One tab with a note of everything that must not happen in it."""

    page: Page
    origin: str
    console_errors: list[str] = field(default_factory=list)
    foreign_requests: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    """Parts of console errors that a test provokes, such as Chromium's line for an answer 403."""

    def goto(self, path: str) -> Page:
        self.page.goto(self.origin + path)
        return self.page

    def check(self) -> None:
        unexpected = [line for line in self.console_errors if not any(part in line for part in self.expected)]
        assert (unexpected, self.foreign_requests) == ([], [])


@contextmanager
def watched_page(browser: Browser, origin: str, **options: Any) -> Iterator[Watched]:
    """A fresh tab with cookies of its own; at its end there was no error in the console and no request elsewhere.

    options: of playwright's new_context, such as `viewport` or `color_scheme`.
    """
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
    context.set_default_timeout(15_000)
    watched = Watched(context.new_page(), origin)

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            watched.console_errors.append(f"{message.text} ({message.location.get('url', '')})")

    def on_request(request: Request) -> None:
        if not request.url.startswith((origin, "data:", "blob:")):
            watched.foreign_requests.append(request.url)

    watched.page.on("console", on_console)
    watched.page.on("pageerror", lambda error: watched.console_errors.append(str(error)))
    watched.page.on("request", on_request)
    try:
        yield watched
        watched.check()
    finally:
        context.close()


def serious_findings(page: Page) -> list[str]:
    """What axe-core finds that keeps people out, with the elements concerned."""
    source = npm_packages(NPM) / "node_modules" / "axe-core" / "axe.min.js"
    page.evaluate(source.read_text(encoding="utf-8"))  # not as a script of the page: its policy would refuse it
    found = page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{entry['id']}: {node['target']}: {node['failureSummary']}"
        for entry in found
        if entry["impact"] in _SERIOUS
        for node in entry["nodes"]
    ]


def overflowing(page: Page) -> int:
    """By how many pixels a page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
