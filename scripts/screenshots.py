"""Pictures of the web page of a running server, for docs/images."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "images"
TIMEOUT_MS = 120_000


def run(page: Page) -> None:
    """Let the contenders answer."""
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#status")).to_have_text("done", timeout=TIMEOUT_MS)
    page.evaluate("window.scrollTo(0, 0)")


def main(url: str) -> None:
    """Take all pictures: Try in the light, in the dark and on a phone, and the gallery."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        shots = [
            ("ui-try", "/ui/try", {"width": 1280, "height": 860}, "light"),
            ("ui-try-dark", "/ui/try", {"width": 1280, "height": 860}, "dark"),
            ("ui-try-phone", "/ui/try", {"width": 390, "height": 844}, "light"),
            ("ui-adapters", "/ui/adapters?sort=lift", {"width": 1280, "height": 520}, "light"),
            ("ui-leaderboard", "/ui/leaderboard", {"width": 1440, "height": 520}, "light"),
            ("ui-operations", "/ui/operations", {"width": 1280, "height": 860}, "dark"),
            ("ui-cost", "/ui/cost", {"width": 1280, "height": 860}, "light"),
        ]
        for name, path, viewport, scheme in shots:
            page = browser.new_page(viewport=viewport, color_scheme=scheme)
            page.goto(url + path)
            if path.startswith("/ui/try"):
                run(page)
            page.screenshot(path=IMAGES / f"{name}.png")
            page.close()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
