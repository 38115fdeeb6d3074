"""The leaderboard over a real evaluation: sorting, filters, single examples, and text that stays text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from playwright.sync_api import expect

from atoll.evaluation.fleet import evaluate_fleet
from atoll.server.caller import Caller
from atoll.server.ui.leaderboard_table import ResultsFiles
from atoll.server.ui.runs_folder import RunsFolder
from atoll.server.ui.runs_process import RunProcesses
from support.browsing import Watched, overflowing, serious_findings
from support.fleets import make_fleet, write_rows
from support.pages import ShownSite

HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)>"
NUM_EXAMPLES = 24


@pytest.fixture(scope="module")
def evaluated(site: ShownSite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with results, below the site's runs."""
    fleet = make_fleet(tmp_path_factory.mktemp("fleet"))
    rows = [{"text": f"number {i} {HOSTILE}", "answer": HOSTILE if i % 2 else "label 1"} for i in range(NUM_EXAMPLES)]
    write_rows(fleet.folder / "colors.jsonl", rows)
    for seed, name in enumerate(("colors", "shapes")):
        fleet.publish(name, seed=seed)
    run = site.runs / "tiny"
    evaluate_fleet(fleet.config, fleet_path=fleet.path, store=fleet.store, folder=run / "eval")
    return run


def get(site: ShownSite, path: str) -> str:
    answer = httpx.get(f"{site.url}{path}", headers={"accept": "text/html"})
    assert answer.status_code == 200, answer.text
    return answer.text


def first_column(html: str) -> list[str]:
    return re.findall(r'<th scope="row"><a [^>]*>([^<]+)</a>', html)


def test_every_score_of_the_results_is_shown_with_its_interval(site: ShownSite, evaluated: Path) -> None:
    html = get(site, "/ui/leaderboard?run=tiny")
    results = json.loads((evaluated / "eval" / "results.json").read_bytes())
    assert sorted(first_column(html)) == ["colors", "shapes"]
    for member in results["members"]:
        for score in member["metrics"][0]["scores"].values():
            assert f"{100 * score['value']:.1f}" in html
            assert f"{100 * score['low']:.1f} to {100 * score['high']:.1f}" in html


def test_sorting_search_and_run_stand_in_the_address(site: ShownSite, evaluated: Path) -> None:
    assert first_column(get(site, "/ui/leaderboard?sort=task&order=down")) == ["colors", "shapes"]
    assert first_column(get(site, "/ui/leaderboard?sort=task&order=up")) == ["shapes", "colors"]
    assert first_column(get(site, "/ui/leaderboard?q=SHA")) == ["shapes"]
    assert first_column(get(site, "/ui/leaderboard?q=nothing+like+it")) == []
    down, up = (first_column(get(site, f"/ui/leaderboard?sort=examples&order={order}")) for order in ("down", "up"))
    assert down == up[::-1] == ["colors", "shapes"]
    assert httpx.get(f"{site.url}/ui/leaderboard?run=unknown").status_code == 404
    assert httpx.get(f"{site.url}/ui/leaderboard?run=../../etc").status_code == 404


def test_filters_leave_the_examples_that_they_name(site: ShownSite, evaluated: Path) -> None:
    path = "/ui/leaderboard/tiny/colors"
    numbers = {
        name: int(count)
        for name, count in re.findall(r'filter=(\w+)[^>]*>[^<]*<span class="num">(\d+)</span>', get(site, path))
    }
    assert numbers["all"] == NUM_EXAMPLES
    for name, count in numbers.items():
        shown = []
        for page in (1, 2):
            shown += re.findall(r'aria-label="Example (\d+)"', get(site, f"{path}?filter={name}&page={page}"))
        assert len(set(shown)) == count, name


def test_pages_beyond_the_last_are_the_last(site: ShownSite, evaluated: Path) -> None:
    path = "/ui/leaderboard/tiny/colors"
    assert "page 2 of 2" in get(site, f"{path}?page=2")
    assert "page 2 of 2" in get(site, f"{path}?page=999999")
    assert httpx.get(f"{site.url}{path}?page=0").status_code == 422


@pytest.mark.parametrize("path", ["/ui/leaderboard/tiny/unknown", "/ui/leaderboard/x/y", "/ui/leaderboard/..%2f../y"])
def test_what_is_not_there_is_told(site: ShownSite, evaluated: Path, path: str) -> None:
    assert httpx.get(f"{site.url}{path}").status_code == 404


def test_text_of_examples_is_inert(tab: Watched, evaluated: Path) -> None:
    page = tab.goto("/ui/leaderboard/tiny/colors?with=adapter&with=base")
    expect(page.locator("article").first).to_contain_text("<script>")
    assert page.title().startswith("colors")
    assert page.locator("article script, article img").count() == 0
    assert serious_findings(page) == []


def test_from_the_table_to_the_examples_with_the_keyboard(tab: Watched, evaluated: Path) -> None:
    page = tab.goto("/ui/leaderboard?run=tiny")
    assert serious_findings(page) == []
    page.locator("#q").focus()
    page.keyboard.type("shapes")
    expect(page.locator("table.board tbody tr")).to_have_count(1)
    assert "q=shapes" in page.url
    page.get_by_role("link", name="shapes", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/leaderboard/tiny/shapes")
    page.get_by_role("link", name=re.compile("adapter is wrong")).focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**filter=wrong**")


def test_a_phone_shows_both_pages(open_tab: Callable[..., Any], evaluated: Path) -> None:
    with open_tab(viewport={"width": 360, "height": 740}, color_scheme="dark") as watched:
        for path in ("/ui/leaderboard?run=tiny", "/ui/leaderboard/tiny/colors"):
            page = watched.goto(path)
            assert overflowing(page) <= 0, path
            assert serious_findings(page) == [], path


def test_a_tenant_sees_its_own_adapters_alone(site: ShownSite, evaluated: Path) -> None:
    files = ResultsFiles(RunsFolder(site.runs, RunProcesses()))
    board = files.board(Caller(scopes=frozenset({"use"}), adapters=("col*",)), "tiny")
    assert [row.member for row in board.rows] == ["colors"]
    assert files.board(Caller(scopes=frozenset({"use"}), adapters=()), "tiny").rows == ()


def test_results_that_cannot_be_read_are_named_and_hide_no_others(site: ShownSite, evaluated: Path) -> None:
    broken = site.runs / "broken" / "eval"
    broken.mkdir(parents=True)
    (broken / "results.json").write_text('{"members": [')
    html = get(site, "/ui/leaderboard")
    assert "broken" in html
    assert {"colors", "shapes"} <= set(first_column(html))
    assert httpx.get(f"{site.url}/ui/leaderboard?run=broken").status_code == 422
    (broken / "results.json").unlink()
