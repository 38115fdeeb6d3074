"""What the Try page asks the server, without a browser: states, answers, and texts that do the same elsewhere."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from atoll.errors import AtollError, RequestInvalid
from atoll.model.load import load_base
from atoll.server.app import create_app
from atoll.server.ui.site import UiSettings
from atoll.server.ui.try_state import TryState, parse_state
from support.engines import settled
from support.pages import ShownSite
from support.servers import read_events, serving, wait_until
from support.stub import StubEngine, empty_catalog

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=20)
INPUTS = {"question": "When was it built?", "sentence": 'It was built in 1902, it\'s "old" & <b>grey</b> $HOME `ls`.'}


def form(adapter: str, contenders: tuple[str, ...], **fields: str) -> dict[str, Any]:
    inputs = {f"in.{column}": text for column, text in INPUTS.items()} if adapter == "glue_qnli" else {}
    return {"adapter": adapter, "with": list(contenders), **inputs, **fields}


def token(url: str) -> dict[str, str]:
    return {"x-atoll-csrf": re.findall(r'name="csrf" content="(\w+)"', httpx.get(f"{url}/ui/try").text)[0]}


def answers(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = httpx.post(f"{url}/ui/answers", data=body, headers=token(url), timeout=60)
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    return read_events(response.text)


def texts(events: list[dict[str, Any]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for event in events:
        if event["type"] == "text":
            found[event["column"]] = found.get(event["column"], "") + event["text"]
    return found


@pytest.fixture(scope="module")
def stubbed(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> Iterator[tuple[str, StubEngine]]:
    """A page over an engine that makes its tokens up."""
    folder = tmp_path_factory.mktemp("stubbed")
    base = load_base(str(tiny_base_folder), device="cpu", dtype="float32")
    with StubEngine() as engine:
        settings = UiSettings(runs=folder / "runs", votes=folder / "votes")
        with serving(create_app(engine, base, empty_catalog(folder), ui=settings)) as url:
            yield url, engine


@given(
    adapter=st.sampled_from(["a", "b@2", "base"]),
    inputs=st.dictionaries(TEXT, TEXT, max_size=3),
    prompt=TEXT,
    contenders=st.lists(st.sampled_from(["base", "a", "b", "c"]), unique=True),
    blind=st.booleans(),
    max_new_tokens=st.none() | st.integers(1, 4096),
    temperature=st.none() | st.sampled_from([0.0, 0.5, 10.0]),
)
def test_every_state_has_an_address(**fields: Any) -> None:
    state = TryState(**(fields | {"contenders": tuple(fields["contenders"])}))
    assert parse_state(QueryParams(state.query).multi_items()) == state


@pytest.mark.parametrize(
    ("pairs", "what"),
    [
        ([("with", str(number)) for number in range(5)], "too many"),
        ([("max_new_tokens", "0")], "new tokens"),
        ([("max_new_tokens", "9" * 50)], "new tokens"),
        ([("temperature", "nan")], "temperature"),
        ([("temperature", "x")], "temperature"),
        ([("prompt", "x" * 200_001)], "too long"),
        ([(f"in.{number}", "x") for number in range(65)], "too long"),
    ],
)
def test_a_state_out_of_bounds_is_refused(pairs: list[tuple[str, str]], what: str) -> None:
    with pytest.raises(RequestInvalid, match=what):
        parse_state(pairs)


def test_contenders_get_the_same_prompt_and_answer_as_the_api_does(site: ShownSite) -> None:
    events = answers(site.url, form("glue_qnli", ("glue_qnli", "base", "alpha")))
    assert events[0]["labels"] == ["glue_qnli", "base", "alpha"]
    assert events[-1] == {"type": "done"}
    body = {"inputs": INPUTS, "parameters": {"adapter_id": "glue_qnli"}}
    same = httpx.post(f"{site.url}/generate", json=body).json()["generated_text"]
    found = texts(events)
    assert found[0] == same
    assert len(set(found.values())) == 3
    ends = [event for event in events if event["type"] == "end"]
    assert {end["num_prompt_tokens"] for end in ends} == {events[0]["num_prompt_tokens"]}
    assert all(end["first_token_s"] > 0 and end["num_new_tokens"] > 0 for end in ends)


def test_what_goes_wrong_with_one_contender_is_told_in_its_own_column(site: ShownSite) -> None:
    events = answers(site.url, form("glue_qnli", ("glue_qnli", "nobody")))
    assert texts(events)[0]
    (error,) = [event for event in events if event["type"] == "error"]
    assert error["column"] == 1
    assert "no adapter 'nobody'" in error["message"]


def test_a_broken_engine_is_told_without_its_secrets(stubbed: tuple[str, StubEngine]) -> None:
    url, engine = stubbed
    engine.error = AtollError("a secret place")
    try:
        events = answers(url, form("base", ("base",), prompt="Hi"))
    finally:
        engine.error = None
    assert [event["type"] for event in events] == ["start", "error", "done"]
    assert "secret" not in json.dumps(events)


def test_leaving_stops_the_answers_and_frees_their_blocks(site: ShownSite) -> None:
    body = form("glue_qnli", ("glue_qnli", "base"), max_new_tokens="400", temperature="2")
    with httpx.stream("POST", f"{site.url}/ui/answers", data=body, headers=token(site.url)) as response:
        next(line for line in response.iter_lines() if '"text"' in line)
    stats = settled(site.engine)
    assert stats.num_free_blocks == stats.num_blocks


def test_leaving_aborts_every_contender(stubbed: tuple[str, StubEngine]) -> None:
    url, engine = stubbed
    engine.pause_s, before = 0.05, engine.num_aborted
    body = form("base", ("base",), prompt="Hi")
    try:
        with httpx.stream("POST", f"{url}/ui/answers", data=body, headers=token(url)) as response:
            next(line for line in response.iter_lines() if '"text"' in line)
        wait_until(lambda: engine.num_aborted == before + 1)
    finally:
        engine.pause_s = 0.0


def test_a_blind_stream_tells_no_names_and_no_figures_until_the_vote(site: ShownSite) -> None:
    events = answers(site.url, form("glue_qnli", ("glue_qnli", "base"), blind="1"))
    assert events[0]["labels"] == ["Answer A", "Answer B"]
    assert "glue_qnli" not in json.dumps(events)
    assert [event for event in events if event["type"] == "end"] == [
        {"column": event["column"], "type": "end"} for event in events if event["type"] == "end"
    ]
    body = {"duel": events[0]["duel"], "winner": "b"}
    told = httpx.post(f"{site.url}/ui/votes", data=body, headers=token(site.url)).json()
    assert sorted(told["labels"]) == ["base", "glue_qnli"]
    lines = httpx.get(f"{site.url}/ui/votes.jsonl").text.splitlines()
    last = json.loads(lines[-1])
    assert (last["chosen_adapter"], last["chosen"]) == (told["labels"][1], texts(events)[1])
    assert (last["rejected_adapter"], last["rejected"]) == (told["labels"][0], texts(events)[0])
    assert INPUTS["question"] in last["prompt"]
    again = httpx.post(f"{site.url}/ui/votes", data=body, headers=token(site.url))
    assert again.status_code == 404
    assert "glue_qnli" in httpx.get(f"{site.url}/ui/votes").text


def copied(page: str) -> dict[str, str]:
    """The texts to copy, as a browser would have them."""
    found = re.findall(r"<figcaption>(\w+) .*?<pre[^>]*>(.*?)</pre>", page, flags=re.DOTALL)
    return {label: html.unescape(text) for label, text in found}


def test_the_texts_to_copy_do_what_the_page_does(site: ShownSite) -> None:
    page = httpx.post(f"{site.url}/ui/preview", data=form("glue_qnli", ("glue_qnli",)), headers=token(site.url)).text
    texts_to_copy = copied(page)
    expected = texts(answers(site.url, form("glue_qnli", ("glue_qnli",))))[0]
    done = subprocess.run(["bash", "-c", texts_to_copy["curl"]], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["generated_text"] == expected
    program = [sys.executable, "-I", "-c", texts_to_copy["Python"]]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == expected.strip()
    assert texts_to_copy["CLI"].startswith("atoll run glue_qnli --input 'question=When was it built?' --input ")


def test_the_base_alone_is_asked_as_a_chat(site: ShownSite) -> None:
    body = form("base", ("base",), prompt="It's me", max_new_tokens="4")
    page = httpx.post(f"{site.url}/ui/preview", data=body, headers=token(site.url)).text
    command = copied(page)["curl"]
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == texts(answers(site.url, body))[0]


def test_the_preview_counts_tokens_and_shows_markup_as_text(site: ShownSite) -> None:
    page = httpx.post(f"{site.url}/ui/preview", data=form("glue_qnli", ("base",)), headers=token(site.url)).text
    (shown,) = re.findall(r'<strong class="num">(\d+)</strong>', page)
    events = answers(site.url, form("glue_qnli", ("base",)))
    assert int(shown) == events[0]["num_prompt_tokens"]
    assert "<b>grey" not in page
    assert "&lt;b&gt;grey" in page
    wrong = httpx.post(f"{site.url}/ui/preview", data={"adapter": "nobody", "prompt": "x"}, headers=token(site.url))
    assert "no adapter" in wrong.text


def test_an_address_with_markup_is_shown_as_text(site: ShownSite) -> None:
    evil = '"><script>alert(1)</script>'
    query = {"adapter": "sentiment", "in.text": evil, "q": evil, "category": evil, "with": ["sentiment", "base"]}
    page = httpx.get(f"{site.url}/ui/try", params=query).text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_host_that_is_no_host_is_not_repeated(site: ShownSite) -> None:
    page = httpx.get(f"{site.url}/ui/try?adapter=support", headers={"host": "localhost"}).text
    assert "http://localhost/generate" in copied(page)["curl"]
