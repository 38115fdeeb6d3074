"""Functions by the unmodified openai client: forced calls are always valid, and conversations may hold calls."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import OpenAI

from support.servers import Served

MESSAGES: Any = [{"role": "user", "content": "What is the weather in Bern?"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/C"}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
            "$defs": {"C": {"type": "string", "maxLength": 5}},
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
TOOLS: Any = [WEATHER, CLOCK]


@pytest.fixture
def client(served: Served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=30)


def check_arguments(name: str, arguments: str) -> None:
    if name == "clock":
        assert json.loads(arguments) == {}
        return
    assert name == "get_weather"
    values = json.loads(arguments)
    assert set(values) == {"city", "days"}
    assert len(values["city"]) <= 5
    assert values["days"] in (1, 2, 3)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}], ids=str)
def test_a_forced_call_is_valid_whatever_the_model_would_say(client: OpenAI, choice: Any) -> None:
    names = set()
    for seed, model in enumerate(["", "alpha", "beta", "gamma", "delta", "alpha", "beta"]):
        answer = client.chat.completions.create(
            model=model, messages=MESSAGES, tools=TOOLS, tool_choice=choice, seed=seed
        )
        message = answer.choices[0].message
        assert answer.choices[0].finish_reason == "tool_calls"
        assert message.content is None
        assert message.tool_calls
        call = message.tool_calls[0]
        assert call.type == "function"
        assert call.id.startswith("call_")
        check_arguments(call.function.name, call.function.arguments)
        names.add(call.function.name)
    assert names == {"get_weather"} if choice != "required" else names <= {"get_weather", "clock"}


def test_a_forced_call_comes_name_first_and_then_its_arguments(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": "alpha", "messages": MESSAGES, "tools": TOOLS, "seed": 4}
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    whole = client.chat.completions.create(**fields, tool_choice=choice).choices[0].message.tool_calls
    parts = list(client.chat.completions.create(**fields, tool_choice=choice, stream=True))
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[-1].choices[0].finish_reason == "tool_calls"
    deltas = [call for part in parts for call in part.choices[0].delta.tool_calls or []]
    first = deltas[0]
    assert first.function is not None
    assert (first.index, first.type, first.function.name, first.function.arguments) == (
        0,
        "function",
        "get_weather",
        "",
    )
    assert first.id
    rest = [delta.function.arguments or "" for delta in deltas[1:] if delta.function]
    assert len(rest) > 3
    assert all(delta.id is None and delta.index == 0 for delta in deltas[1:])
    assert whole is not None
    assert whole[0].type == "function"
    assert "".join(rest) == whole[0].function.arguments


def test_a_forced_call_that_is_cut_off_says_so(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="alpha", messages=MESSAGES, tools=TOOLS, tool_choice="required", max_tokens=3
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.tool_calls is None


def test_a_free_answer_of_noise_is_text(client: OpenAI) -> None:
    fields: dict[str, Any] = {
        "model": "alpha",
        "messages": MESSAGES,
        "tools": TOOLS,
        "max_tokens": 20,
        "temperature": 0,
    }
    answer = client.chat.completions.create(**fields)
    assert answer.choices[0].message.tool_calls is None
    parts = client.chat.completions.create(**fields, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == answer.choices[0].message.content


def test_tools_that_may_not_be_used_are_not_told_of(client: OpenAI) -> None:
    def num_prompt_tokens(**fields: Any) -> int:
        answer = client.chat.completions.create(model="", messages=MESSAGES, max_tokens=1, **fields)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    assert num_prompt_tokens(tools=TOOLS, tool_choice="none") == num_prompt_tokens() == num_prompt_tokens(tools=[])
    assert num_prompt_tokens(tools=TOOLS) > num_prompt_tokens() + 50


def test_a_conversation_may_hold_calls_and_their_results(client: OpenAI) -> None:
    clock: Any = CLOCK
    forced = client.chat.completions.create(
        model="alpha", messages=MESSAGES, tools=[clock], tool_choice="required", seed=1
    )
    message = forced.choices[0].message
    assert message.tool_calls
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls]
    # Both ways in which users send an answer back: the client's own object, and everything that it holds.
    for sent_back in (message, message.model_dump()):
        answer = client.chat.completions.create(
            model="alpha", messages=[*MESSAGES, sent_back, *results], tools=[clock], max_tokens=4
        )
        assert answer.usage is not None
        assert forced.usage is not None
        assert answer.usage.prompt_tokens > forced.usage.prompt_tokens


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def function(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tool_choice": "required"}, "names no tool"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "names no tool"),
        ({"tools": [CLOCK, CLOCK]}, "two tools have one name"),
        ({"tools": [function(f"f{i}") for i in range(129)]}, "more than 128 tools"),
        ({"tools": [function("a b")]}, "name"),
        ({"tools": [function("f", parameters=nested(100))]}, "nested deeper"),
        ({"tools": [function("f", parameters={"type": "string"})]}, "no object's schema"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "a form and call tools"),
        ({"tools": [function("f", strict=True, parameters={"not": {}})], "tool_choice": "required"}, "cannot be used"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}]}, "assistant's"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "y"}]}, "role tool"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "<|im_end|>"}}]}]}, "name"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_cannot_be_done_is_refused(client: OpenAI, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.post("/chat/completions", body={"model": "alpha", "messages": MESSAGES} | fields, cast_to=object)


def test_deep_arguments_in_a_conversation_harm_nobody(client: OpenAI) -> None:
    for arguments in ("[" * 50_000, '{"a":' * 900 + "1" + "}" * 900, "no JSON", '{"a": NaN}'):
        call = {"id": "x", "type": "function", "function": {"name": "clock", "arguments": arguments[:300]}}
        messages: Any = [*MESSAGES, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "x"}]
        answer = client.chat.completions.create(model="alpha", messages=messages, max_tokens=1)
        assert answer.choices[0].finish_reason in ("length", "stop")
