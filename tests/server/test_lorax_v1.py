"""What LoRAX's own /v1 routes take, and what docs/migrating-from-lorax.md says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from support.servers import Served

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}},
    "required": ["mood"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("clock", "weather")
]


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=30) as client:
        yield client


def ask(client: httpx.Client, path: str, **fields: Any) -> httpx.Response:
    prompt = {"prompt": "x"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "x"}]}
    return client.post(path, json={"model": "alpha", "max_tokens": 5, "seed": 1} | prompt | fields)


def choice(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_the_end_is_ignored_by_lorax_s_name_too(served: Served, client: httpx.Client, path: str) -> None:
    wanted = {"logit_bias": {str(next(iter(served.engine.base.end_ids))): 100}, "temperature": 0}
    for off in ({}, {"ignore_eos_token": False}, {"ignore_eos_token": None}):
        assert choice(ask(client, path, **wanted, **off))["finish_reason"] == "stop"
    assert choice(ask(client, path, **wanted, ignore_eos_token=True))["finish_reason"] == "length"


def test_a_schema_may_stand_where_lorax_has_it(client: httpx.Client) -> None:
    form = {"type": "json_object", "schema": SCHEMA}
    for path, model in ((CHAT, "alpha"), (CHAT, ""), (COMPLETIONS, "beta")):
        answer = choice(ask(client, path, model=model, response_format=form, max_tokens=60))
        text = answer["message"]["content"] if path == CHAT else answer["text"]
        assert json.loads(text) in ({"mood": "good"}, {"mood": "bad"})
    empty = choice(ask(client, CHAT, response_format={"type": "json_object", "schema": {}}))
    assert empty["message"]["content"][0] == "{"


@pytest.mark.parametrize("kind", ["text", "json_schema"])
def test_a_schema_that_would_have_no_effect_is_refused(client: httpx.Client, kind: str) -> None:
    form = {"type": kind, "schema": SCHEMA} | ({"json_schema": {"name": "x"}} if kind == "json_schema" else {})
    response = ask(client, CHAT, response_format=form)
    assert response.status_code == 400
    assert "`schema` is for the type json_object" in response.json()["error"]["message"]


def test_a_function_may_be_named_bare(client: httpx.Client) -> None:
    for seed in range(3):
        answer = choice(ask(client, CHAT, tools=TOOLS, tool_choice="weather", max_tokens=60, seed=seed))
        assert [call["function"]["name"] for call in answer["message"]["tool_calls"]] == ["weather"]
    refused = ask(client, CHAT, tools=TOOLS, tool_choice="nothing")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_choice")


@pytest.mark.parametrize(
    ("path", "fields", "status", "message"),
    [
        (CHAT, {"tool_prompt": "Call one."}, 400, "'tool_prompt' is not known"),
        (CHAT, {"guideline": "Be kind."}, 400, "'guideline' is not known"),
        (CHAT, {"typical_p": 0.5}, 400, "'typical_p' is not known"),
        (CHAT, {"adapter_source": "pbase"}, 400, "adapter_source"),
        (COMPLETIONS, {"model": "__base_model__"}, 404, "not an adapter's name"),
        (COMPLETIONS, {"best_of": 2}, 400, "best_of other than n"),
        (COMPLETIONS, {"suffix": "."}, 400, "'suffix' is not implemented"),
        (COMPLETIONS, {"model": "nobody", "stream": True}, 404, "no adapter"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_lorax_takes_and_atoll_refuses(
    client: httpx.Client, path: str, fields: dict[str, Any], status: int, message: str
) -> None:
    response = ask(client, path, **fields)
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    assert message in response.json()["error"]["message"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_answers_are_openai_s_where_lorax_s_differ(client: httpx.Client, path: str) -> None:
    whole = ask(client, path, n=2, ignore_eos=True)
    assert [found["index"] for found in whole.json()["choices"]] == [0, 1]
    assert whole.json()["object"] == ("text_completion" if path == COMPLETIONS else "chat.completion")
    assert whole.json()["id"] != "null"
    assert not {name for name in whole.headers if name.startswith("x-")}
    assert '"usage"' not in ask(client, path, stream=True).text
    assert '"usage"' in ask(client, path, stream=True, stream_options={"include_usage": True}).text


def test_a_stop_string_is_a_stop(client: httpx.Client) -> None:
    plain = choice(ask(client, COMPLETIONS, temperature=0, max_tokens=20, ignore_eos=True))
    stopped = choice(ask(client, COMPLETIONS, temperature=0, max_tokens=20, ignore_eos=True, stop=[plain["text"][3:6]]))
    assert (plain["finish_reason"], stopped["finish_reason"]) == ("length", "stop")
    assert len(stopped["text"]) < len(plain["text"])


def test_the_document_has_its_own_address(client: httpx.Client) -> None:
    assert client.get("/openapi.json").status_code == client.get("/docs").status_code == 200
    assert client.get("/api-doc/openapi.json").status_code == 404
