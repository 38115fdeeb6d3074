"""The leaderboard over a real evaluation: sorting, filters, single examples, and text that stays text."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from playwright.sync_api import expect

from atoll.errors import DataError, NotFound
from atoll.evaluation.fleet import evaluate_fleet
from atoll.server.caller import Caller
from atoll.server.ui.leaderboard_examples import ExampleFiles
from atoll.server.ui.leaderboard_table import ResultsFiles
from atoll.server.ui.runs_folder import RunsFolder
from atoll.server.ui.runs_process import RunProcesses
from support.browsing import Watched, overflowing, serious_findings
from support.files import unreadable_as_it_was
from support.fleets import make_fleet, write_rows
from support.pages import ShownSite, shown_site
from support.servers import wait_until

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


def user(*adapters: str) -> Caller:
    return Caller(scopes=frozenset({"use"}), adapters=adapters)


def test_a_tenant_sees_its_own_adapters_alone(site: ShownSite, evaluated: Path) -> None:
    files = ResultsFiles(RunsFolder(site.runs, RunProcesses()))
    board = files.board(user("col*"), "tiny")
    assert [row.member for row in board.rows] == ["colors"]
    assert files.member(user("col*"), "tiny", "colors")[1].name == "colors"
    with pytest.raises(NotFound):
        files.member(user("col*"), "tiny", "shapes")


def test_runs_that_are_not_there_not_evaluated_or_not_the_callers_look_alike(tmp_path: Path, evaluated: Path) -> None:
    results = (evaluated / "eval" / "results.json").read_bytes()
    for name, content in (("hidden", results), ("damaged", b"{"), ("trained", None)):
        (tmp_path / name / "eval").mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
        if content is not None:
            (tmp_path / name / "eval" / "results.json").write_bytes(content)
    files = ResultsFiles(RunsFolder(tmp_path, RunProcesses()))
    told = set()
    for name in ("hidden", "damaged", "trained", "nothing", ".."):
        with pytest.raises(NotFound) as caught:
            files.board(user("other-*"), name)
        with pytest.raises(NotFound) as again:
            files.member(user("other-*"), name, "colors")
        told |= {str(error.value).replace(repr(name), "NAME") for error in (caught, again)}
    assert len(told) == 1
    assert files.board(user("other-*")).unreadable == ()
    assert files.board(Caller()).unreadable == ("damaged",)
    with pytest.raises(DataError):
        files.board(Caller(), "damaged")


def test_a_board_of_many_runs_reads_again_only_what_has_changed(tmp_path: Path, evaluated: Path) -> None:
    results = (evaluated / "eval" / "results.json").read_bytes()
    paths = [tmp_path / f"run-{number:03}" / "eval" / "results.json" for number in range(150)]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_bytes(results)
    files = ResultsFiles(RunsFolder(tmp_path, RunProcesses()))
    assert len(files.board(Caller()).runs) == len(paths)
    for path in paths:
        unreadable_as_it_was(path)
    board = files.board(Caller())
    assert (len(board.runs), board.unreadable) == (len(paths), ())
    paths[0].write_bytes(b"{")
    assert files.board(Caller()).unreadable == ("run-000",)


def test_two_who_ask_for_the_same_examples_have_them_scored_once(tmp_path: Path, evaluated: Path) -> None:
    folder = tmp_path / "eval"
    shutil.copytree(evaluated / "eval", folder)
    files = ResultsFiles(RunsFolder(evaluated.parent, RunProcesses()))
    results, _ = files.member(Caller(), "tiny", "colors")
    record = next(record for record in results.run.members if record.name == "colors")
    answers = folder / "raw" / "colors" / "adapter.jsonl"
    content = answers.read_bytes()
    answers.unlink()
    os.mkfifo(answers)  # gives its content to one reader, and keeps others waiting
    examples, found = ExampleFiles(), []

    def look() -> None:
        found.append(examples.page(folder, record, ["adapter"], "all", 1))

    threads = [threading.Thread(target=look, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    with answers.open("wb") as file:
        file.write(content)
    for thread in threads:
        thread.join(timeout=20)
    assert len(found) == 2
    assert found[0] == found[1]


def test_examples_that_could_not_be_read_are_read_again(tmp_path: Path, evaluated: Path) -> None:
    folder = tmp_path / "eval"
    shutil.copytree(evaluated / "eval", folder)
    results, _ = ResultsFiles(RunsFolder(evaluated.parent, RunProcesses())).member(Caller(), "tiny", "colors")
    record = next(record for record in results.run.members if record.name == "colors")
    answers, examples = folder / "raw" / "colors" / "adapter.jsonl", ExampleFiles()
    content = answers.read_bytes()
    answers.write_bytes(b"")
    with pytest.raises(DataError):
        examples.page(folder, record, ["adapter"], "all", 1)
    answers.write_bytes(content)
    assert examples.page(folder, record, ["adapter"], "all", 1).num_found == NUM_EXAMPLES


def test_where_the_runs_lie_is_told_to_admins_alone(tmp_path: Path, evaluated: Path) -> None:
    with shown_site(tmp_path, with_keys=True) as closed:
        shutil.copytree(evaluated / "eval", closed.runs / "tiny" / "eval")
        for scopes, is_told in (({"use"}, False), ({"use", "admin"}, True)):
            headers = {"x-api-key": closed.key(scopes=frozenset(scopes)), "accept": "text/html"}
            url = f"{closed.url}/ui/leaderboard/tiny/colors"
            wait_until(lambda: httpx.get(url, headers=headers).status_code == 200)  # noqa: B023
            assert (str(closed.runs) in httpx.get(url, headers=headers).text) == is_told


def test_results_that_cannot_be_read_are_named_and_hide_no_others(site: ShownSite, evaluated: Path) -> None:
    broken = site.runs / "broken" / "eval"
    broken.mkdir(parents=True)
    (broken / "results.json").write_text('{"members": [')
    html = get(site, "/ui/leaderboard")
    assert "broken" in html
    assert {"colors", "shapes"} <= set(first_column(html))
    assert httpx.get(f"{site.url}/ui/leaderboard?run=broken").status_code == 422
    (broken / "results.json").unlink()
