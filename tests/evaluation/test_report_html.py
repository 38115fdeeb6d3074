"""report.html: self-contained, escaped, readable, and a function of the raw files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from atoll.config.task import PublishedScores
from atoll.errors import DataError
from atoll.evaluation.outputs import ADAPTER, BASE, Inputs, Output
from atoll.evaluation.report import write_report
from atoll.evaluation.report_examples import MAX_OF_REPORT, MAX_OF_TASK, MIN_OF_TASK
from support.answers import contender, output, outputs, record, write_raw
from support.browsing import chromium

REPORT_FILES = ("results.json", "report.md", "report.html", "scores.svg")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'&\u202eevil\x00 ]]> --> {{ 7 * 7 }}"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """The elements of a page; raises where one is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def hostile_run(folder: Path) -> None:
    published = PublishedScores(metric="accuracy", gpt_4=0.6, mistral_7b=0.7, phi_2=0.5, source=HOSTILE)
    contenders = [contender("few-shot-3", "few_shot", detail=HOSTILE, cost_usd=0.1)]
    answers: dict[str, list[Output]] = {
        BASE: [output(HOSTILE, "yes", i) for i in range(60)],
        "few-shot-3": [output("", "yes", i, error=HOSTILE) for i in range(60)],
        ADAPTER: outputs(50, 60),
    }
    member = record(published=published, contenders=contenders, num_examples=60, notes=(HOSTILE,))
    inputs = [Inputs(example_id=f"{i:016x}", columns={"text": HOSTILE, HOSTILE: "x"}) for i in range(60)]
    write_raw(folder, (member, answers), inputs=inputs, fleet=HOSTILE)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    hostile_run(folder)
    write_report(folder)
    return folder


def test_the_page_holds_no_markup_of_others_and_asks_nobody(hostile: Path) -> None:
    text = (hostile / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(tag in ("img", "iframe", "link", "object", "embed", "foreignobject") for tag, _ in page.tags)
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        links = {name: value or "" for name, value in attributes.items() if name in ("href", "src", "xlink:href")}
        assert all(value.startswith("#") for value in links.values())
    assert any("<script>alert(1)</script>" in part for part in page.texts)
    assert "49" not in {part.strip() for part in page.texts}
    assert "\x00" not in text
    assert "\u202e" not in text
    (policy,) = [a["content"] or "" for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy


def test_every_identifier_is_there_once(hostile: Path) -> None:
    text = (hostile / "report.html").read_text(encoding="utf-8")
    ids = [attributes["id"] for _, attributes in Page(text).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = re.findall(r'href="#([^"]+)"', text)
    assert set(anchors) <= set(ids)
    assert "url(" not in text  # nothing in one plot is found by a name that another plot has too


def test_the_report_is_the_same_bytes_again_and_in_another_process(hostile: Path) -> None:
    before = {name: (hostile / name).read_bytes() for name in REPORT_FILES}
    write_report(hostile)
    assert {name: (hostile / name).read_bytes() for name in REPORT_FILES} == before
    for name in REPORT_FILES:
        (hostile / name).unlink()
    environment = os.environ | {"PYTHONHASHSEED": "4321", "OMP_NUM_THREADS": "2"}
    code = (
        "import sys; from atoll.cli.main import app; app(sys.argv[1:], standalone_mode=False);"
        "sys.exit('torch' in sys.modules)"  # figures alone need none of it
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "report", str(hostile)],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert str(hostile / "report.html") in done.stdout
    assert {name: (hostile / name).read_bytes() for name in REPORT_FILES} == before


def test_examples_are_few_and_show_what_matters(tmp_path: Path) -> None:
    base = outputs(90, 100)
    tuned = [output("no" if i < 5 else "yes", "yes", i) for i in range(100)]
    write_raw(tmp_path, (record(), {BASE: base, ADAPTER: tuned}))
    write_report(tmp_path)
    text = (tmp_path / "report.html").read_text()
    examples = re.findall(r'data-why="(\w+)"><small>\w+, <code>(\w+)</code>', text)
    assert len(examples) == len({found for _, found in examples}) == MAX_OF_TASK
    worst = [int(found, 16) for why, found in examples if why == "worst"]
    best = [int(found, 16) for why, found in examples if why == "best"]
    assert set(range(5)) <= set(worst)
    assert set(best) == set(range(90, 100))  # right, where the base was wrong
    assert len(text) < 200_000


def test_a_large_fleet_shows_fewer_examples_of_each(tmp_path: Path) -> None:
    members = [
        (record(f"m{i:02}", num_examples=40), {BASE: outputs(5, 40), ADAPTER: outputs(30, 40)}) for i in range(31)
    ]
    write_raw(tmp_path, *members)
    write_report(tmp_path)
    num_shown = (tmp_path / "report.html").read_text().count("data-why=")
    assert 31 * MIN_OF_TASK <= num_shown <= MAX_OF_REPORT


def test_a_long_text_is_shown_uncompared_and_cut(tmp_path: Path) -> None:
    long = "word " * 100_000
    given = [output(long, "yes", i) for i in range(60)]
    write_raw(tmp_path, (record(num_examples=60), {BASE: given, ADAPTER: given}))
    write_report(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "(cut)" in text
    assert len(text) < 500_000


def test_inputs_that_are_not_the_runs_are_refused(tmp_path: Path) -> None:
    hostile_run(tmp_path)
    path = tmp_path / "raw" / "mood" / "_inputs.jsonl"
    path.write_text(path.read_text().replace('"x"', '"y"'), encoding="utf-8")
    with pytest.raises(DataError, match="do not belong"):
        write_report(tmp_path)


def test_a_browser_sorts_and_filters_without_a_complaint(hostile: Path) -> None:
    with chromium() as browser:
        page = browser.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append("an alert"))
        page.goto((hostile / "report.html").as_uri())
        page.locator("#cost ~ .scroll th button", has_text="US dollars").first.click()
        rows = page.locator("#cost ~ .scroll tbody").first.locator("tr td:nth-child(4)").all_inner_texts()
        assert rows == sorted(rows)
        page.locator(".tools select").select_option("random")
        page.locator("details.task summary").first.click()
        assert page.locator(".example:visible").count() == MAX_OF_TASK // 3
        page.locator(".tools input").fill("nothing has this")
        assert page.locator(".example:visible").count() == 0
    assert complaints == []


def test_the_general_prompts_are_as_many_as_said() -> None:
    path = Path(__file__).parents[2] / "src" / "atoll" / "evaluation" / "general_prompts.yaml"
    prompts = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    assert len(prompts) == len(set(prompts)) == 40
