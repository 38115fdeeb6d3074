"""Stateless responses by the unmodified openai client: text, schemas, functions and events."""

from __future__ import annotations

import json
from typing import Any

import httpx2 as httpx
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from support.servers import Served

CLOCK: dict[str, Any] = {
    "type": "function",
    "name": "clock",
    "parameters": {
        "type": "object",
        "properties": {"zone": {"enum": ["UTC", "CET"]}},
        "required": ["zone"],
        "additionalProperties": False,
    },
}


class Mood(BaseModel):
    """What the client's own `parse` makes a schema of."""

    word: str = Field(max_length=4)


@pytest.fixture
def client(served: Served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=30)


def chat_text(client: OpenAI, messages: Any, **fields: Any) -> str:
    answer = client.chat.completions.create(model="alpha", messages=messages, temperature=0, **fields)
    return answer.choices[0].message.content or ""


def test_an_answer_is_that_of_a_chat(client: OpenAI) -> None:
    answer = client.responses.create(
        model="alpha", input="Hello", instructions="Be brief.", max_output_tokens=8, temperature=0
    )
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert answer.output_text == chat_text(client, messages, max_tokens=8)
    assert answer.object == "response"
    assert answer.id.startswith("resp_")
    assert (answer.status == "incomplete") == (answer.incomplete_details is not None)
    assert answer.usage is not None
    assert answer.usage.output_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.output[0].type == "message"
    extra = answer.model_extra or {}
    assert extra.get("store") is False
    assert answer.instructions == "Be brief."


def test_input_may_be_messages_with_parts(client: OpenAI) -> None:
    items: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hel"}, {"type": "input_text", "text": "lo"}]},
    ]
    answer = client.responses.create(model="alpha", input=items, max_output_tokens=6, temperature=0)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert answer.output_text == chat_text(client, messages, max_tokens=6)
    assert answer.metadata == {}


def test_an_answer_can_be_sent_back_whole(client: OpenAI) -> None:
    first = client.responses.create(
        model="alpha", input="Hi", max_output_tokens=6, temperature=0, include=["message.output_text.logprobs"]
    )
    conversation: Any = [
        {"role": "user", "content": "Hi"},
        *[item.model_dump() for item in first.output],
        {"role": "user", "content": "Go on"},
    ]
    second = client.responses.create(model="alpha", input=conversation, max_output_tokens=6, temperature=0)
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Go on"},
    ]
    assert second.output_text == chat_text(client, messages, max_tokens=6)


def test_the_events_of_a_stream_are_openais_and_add_up(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": "alpha", "input": "Hello", "max_output_tokens": 12, "temperature": 0}
    whole = client.responses.create(**fields)
    events = list(client.responses.create(**fields, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[4 : 4 + len(deltas)] == ["response.output_text.delta"] * len(deltas)
    assert kinds[4 + len(deltas) :] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{whole.status}",
    ]
    assert "".join(deltas) == whole.output_text
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.output_text == whole.output_text
    assert last.response.usage is not None
    assert whole.usage is not None
    assert last.response.usage.total_tokens == whole.usage.total_tokens


def test_the_clients_own_stream_reader_puts_it_together(client: OpenAI) -> None:
    with client.responses.stream(model="alpha", input="Hello", text_format=Mood) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert "response.completed" in kinds
    assert isinstance(final.output_parsed, Mood)
    parsed = client.responses.parse(model="beta", input="Hello", text_format=Mood).output_parsed
    assert isinstance(parsed, Mood)
    assert len(parsed.word) <= 4


def test_any_object_is_json(client: OpenAI) -> None:
    answer = client.responses.create(
        model="alpha", input="Hello", text={"format": {"type": "json_object"}}, max_output_tokens=400
    )
    assert answer.output_text.startswith("{")


def test_a_forced_call_is_valid_and_its_result_can_be_sent(client: OpenAI) -> None:
    tools: Any = [CLOCK]
    choice: Any = {"type": "function", "name": "clock"}
    answer = client.responses.create(model="alpha", input="Time?", tools=tools, tool_choice=choice)
    call = answer.output[0]
    assert call.type == "function_call"
    assert call.name == "clock"
    assert json.loads(call.arguments)["zone"] in ("UTC", "CET")
    assert answer.status == "completed"
    items: Any = [
        {"role": "user", "content": "Time?"},
        call.model_dump(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "noon"},
    ]
    again = client.responses.create(model="alpha", input=items, tools=tools, max_output_tokens=3)
    assert again.usage is not None
    assert answer.usage is not None
    assert again.usage.input_tokens > answer.usage.input_tokens


def test_a_call_in_a_stream_comes_as_its_own_item(client: OpenAI) -> None:
    tools: Any = [CLOCK]
    events = list(
        client.responses.create(model="alpha", input="Time?", tools=tools, tool_choice="required", stream=True)
    )
    added = next(event for event in events if event.type == "response.output_item.added")
    assert added.item.type == "function_call"
    assert (added.item.name, added.item.arguments) == ("clock", "")
    arguments = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert done.arguments == arguments
    assert json.loads(arguments)["zone"] in ("UTC", "CET")
    assert events[-1].type == "response.completed"
    assert events[-1].response.output[0].type == "function_call"


def test_log_probabilities_come_with_the_text(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": "alpha", "input": "Hello", "max_output_tokens": 8, "temperature": 0}
    fields |= {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    part: Any = client.responses.create(**fields).output[0]
    logprobs = part.content[0].logprobs
    assert len(logprobs) > 3
    assert all(len(token.top_logprobs) == 2 for token in logprobs)
    streamed: list[Any] = []
    for event in client.responses.create(**fields, stream=True):
        if event.type == "response.output_text.delta":
            streamed += event.logprobs
    assert [token.logprob for token in streamed] == [token.logprob for token in logprobs]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"store": True}, "'store' is not implemented"),
        ({"previous_response_id": "resp_1"}, "'previous_response_id' is not implemented"),
        ({"background": True}, "'background' is not implemented"),
        ({"conversation": "conv_1"}, "'conversation' is not implemented"),
        ({"truncation": "auto"}, "'truncation' is not implemented"),
        ({"reasoning": {"effort": "high"}}, "'reasoning' is not implemented"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [CLOCK], "text": {"format": {"type": "json_object"}}}, "a form and call tools"),
        ({"input": ""}, "the input is empty"),
        ({"input": []}, "the input is empty"),
        ({"input": [5]}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": [{"type": "function_call", "call_id": "x", "name": "a b", "arguments": "{}"}]}, "name"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"stop": ["x"]}, "'stop' is not known"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_cannot_be_done_is_refused(client: OpenAI, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.post("/responses", body={"model": "alpha", "input": "x"} | fields, cast_to=object)


def test_an_error_names_the_place_in_what_was_sent(client: OpenAI) -> None:
    items = [{"role": "user", "content": "x"}, {"role": "user", "content": [{"type": "input_text", "text": 5}]}]
    with pytest.raises(openai.BadRequestError) as wrong:
        client.post("/responses", body={"model": "alpha", "input": items}, cast_to=object)
    assert wrong.value.param == "input.1.content.0.text"


def test_a_model_that_is_not_there_is_a_plain_error_in_a_stream_too(client: OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model="nobody", input="x", stream=stream)


def test_what_is_said_back_may_be_half_a_character(served: Served) -> None:
    body = b'{"model": "", "input": "x", "max_output_tokens": 1, "store": false, "metadata": {"a": "\\ud800"}}'
    answer = httpx.post(f"{served.url}/v1/responses", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert answer.json()["metadata"] == {"a": "\ud800"}
    assert answer.json()["store"] is False
