"""Chat completions by the unmodified openai client: log-probabilities, several answers, and forms that are kept."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from support.servers import Served

MESSAGES: Any = [{"role": "user", "content": "Who is it?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "mood": {"enum": ["good", "bad"]}},
    "required": ["name", "mood"],
    "additionalProperties": False,
}
UNKNOWN_KEYWORD: dict[str, Any] = {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2, "uniqueItems": True}


class Ticket(BaseModel):
    """What the client's own `parse` makes a schema of."""

    queue: str = Field(max_length=5)
    is_urgent: bool


@pytest.fixture
def client(served: Served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=30)


def test_log_probabilities_have_the_bytes_of_the_answer(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": "alpha", "messages": MESSAGES, "max_tokens": 9, "temperature": 0}
    choice = client.chat.completions.create(**fields, logprobs=True, top_logprobs=2).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content
    content = b"".join(bytes(token.bytes or []) for token in choice.logprobs.content)
    assert content.decode(errors="replace") == choice.message.content
    for token in choice.logprobs.content:
        best = token.top_logprobs[0]
        assert (best.token, best.logprob, best.bytes) == (token.token, token.logprob, token.bytes)
        assert len(token.top_logprobs) == 2
    parts = client.chat.completions.create(**fields, logprobs=True, top_logprobs=2, stream=True)
    told = [part.choices[0].logprobs.content or [] for part in parts if part.choices[0].logprobs]
    assert [token.model_dump() for tokens in told for token in tokens] == [
        token.model_dump() for token in choice.logprobs.content
    ]
    bare = client.chat.completions.create(**fields, logprobs=True).choices[0].logprobs
    assert bare is not None
    assert bare.content
    assert all(token.top_logprobs == [] for token in bare.content)


def test_each_choice_of_a_stream_begins_with_its_role(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": "alpha", "messages": MESSAGES, "max_tokens": 8, "n": 3, "seed": 3}
    whole = client.chat.completions.create(**fields)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = ["", "", ""]
    seen: set[int] = set()
    for part in client.chat.completions.create(**fields, stream=True):
        choice = part.choices[0]
        assert (choice.delta.role == "assistant") == (choice.index not in seen)
        seen.add(choice.index)
        texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_a_schema_is_kept_with_every_adapter_and_seed(client: OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    for seed, model in enumerate(["", "alpha", "beta", "gamma", "delta"]):
        answer = client.chat.completions.create(
            model=model, messages=MESSAGES, response_format=form, max_tokens=200, seed=seed
        )
        assert answer.choices[0].finish_reason == "stop"
        person = json.loads(answer.choices[0].message.content or "")
        assert set(person) == {"name", "mood"}
        assert len(person["name"]) <= 6
        assert person["mood"] in ("good", "bad")


def test_the_clients_parse_gets_its_model(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="alpha", messages=MESSAGES, response_format=Ticket, max_tokens=200, seed=1
    )
    ticket = answer.choices[0].message.parsed
    assert isinstance(ticket, Ticket)
    assert len(ticket.queue) <= 5


def test_any_object_and_structured_outputs(client: OpenAI) -> None:
    def text(**extra: Any) -> str:
        answer = client.chat.completions.create(
            model="alpha", messages=MESSAGES, max_tokens=400, seed=2, extra_body=extra
        )
        return answer.choices[0].message.content or ""

    assert text(response_format={"type": "json_object"})[:1] == "{"
    assert re.fullmatch("[ab]{3}c", text(structured_outputs={"regex": "[ab]{3}c"}))
    assert text(structured_outputs={"choice": ["a+b", "x (y)?"]}) in ("a+b", "x (y)?")
    assert json.loads(text(structured_outputs={"json": SCHEMA}))["mood"] in ("good", "bad")
    whole = client.completions.create(
        model="alpha", prompt="x", max_tokens=200, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
    )
    assert whole.choices[0].text in ("yes", "no")


def test_a_keyword_that_cannot_be_kept_is_refused_only_where_it_must_be(client: OpenAI) -> None:
    def ask(strict: bool) -> str:
        form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": UNKNOWN_KEYWORD, "strict": strict}}
        answer = client.chat.completions.create(
            model="alpha", messages=MESSAGES, response_format=form, max_tokens=100, seed=0
        )
        return answer.choices[0].message.content or ""

    assert all(item in (1, 2) for item in json.loads(ask(strict=False)))
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        ask(strict=True)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"response_format": {"type": "json_schema"}}, "needs `json_schema`"),
        ({"response_format": {"type": "text", "json_schema": {"name": "x"}}}, "has no schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}}, "name"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": nested(200)}}},
            "nested deeper",
        ),
        ({"structured_outputs": {}}, "one of json, regex and choice"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "one of json, regex and choice"),
        ({"structured_outputs": {"regex": "("}}, "cannot be used"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}}, "send one of"),
        ({"top_logprobs": 2}, "top_logprobs is for answers with logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"store": True}, "'store' is not implemented"),
        ({"functions": [{"name": "f"}]}, "'functions' is not implemented"),
        ({"priority": 1}, "'priority' is not known"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": []}, {"role": "user", "tool_call_id": "x"}]},
            "tool",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_cannot_be_done_is_refused(client: OpenAI, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.post("/chat/completions", body={"model": "alpha", "messages": MESSAGES} | fields, cast_to=object)


def test_off_values_and_hints_are_taken(client: OpenAI) -> None:
    extra = {"store": False, "metadata": {}, "service_tier": "auto", "prompt_cache_key": "k", "safety_identifier": "s"}
    answer = client.chat.completions.create(
        model="alpha", messages=MESSAGES, max_tokens=1, n=1, user="me", extra_body=extra | {"audio": None}
    )
    assert answer.choices[0].finish_reason in ("length", "stop")


def test_known_tokens_of_a_prompt_are_told(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "A question that is long enough to fill some blocks. " * 4}]
    details = [client.chat.completions.create(model="gamma", messages=messages, max_tokens=1).usage for _ in range(2)]
    assert details[1] is not None
    assert details[1].prompt_tokens_details is not None
    assert (details[1].prompt_tokens_details.cached_tokens or 0) > 0
