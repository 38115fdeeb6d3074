"""LangChain's unmodified ChatOpenAI and OpenAIEmbeddings against a real server."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

from support.servers import Served


class Ticket(BaseModel):
    """A ticket, sorted."""

    queue: Literal["billing", "shipping"]
    note: str = Field(max_length=6)


@tool
def clock(zone: Literal["UTC", "CET"]) -> str:
    """Tells the time."""
    return f"noon in {zone}"


@pytest.fixture
def chat(served: Served) -> ChatOpenAI:
    fields: dict[str, Any] = {"base_url": f"{served.url}/v1", "api_key": "none", "max_retries": 0}
    return ChatOpenAI(model="alpha", temperature=0, max_tokens=12, **fields)


def test_invoke_and_stream_say_the_same(chat: ChatOpenAI) -> None:
    answer = chat.invoke("Hello")
    assert isinstance(answer, AIMessage)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] <= 12
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    total: AIMessageChunk | None = None
    for chunk in chat.stream("Hello", stream_usage=True):
        assert isinstance(chunk, AIMessageChunk)
        total = chunk if total is None else total + chunk
    assert total is not None
    assert total.content == answer.content
    assert total.usage_metadata is not None
    assert total.usage_metadata["total_tokens"] == answer.usage_metadata["total_tokens"]
    assert asyncio.run(chat.ainvoke("Hello")).content == answer.content


def test_a_batch_of_messages(chat: ChatOpenAI) -> None:
    answers = chat.batch(["Hello", "Classify the ticket"])
    assert [answer.content for answer in answers] == [
        chat.invoke(text).content for text in ("Hello", "Classify the ticket")
    ]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_what_was_asked_for(served: Served, chat: ChatOpenAI, method: Any) -> None:
    free = chat.model_copy(update={"max_tokens": None})
    answer = free.with_structured_output(Ticket, method=method).invoke("My parcel is lost")
    assert isinstance(answer, Ticket)
    assert answer.queue in ("billing", "shipping")


def test_bound_tools_are_called_and_their_results_go_back(chat: ChatOpenAI) -> None:
    free = chat.model_copy(update={"max_tokens": None})
    asked = HumanMessage("What time is it?")
    for choice in ("any", "clock"):
        answer = free.bind_tools([clock], tool_choice=choice).invoke([asked])
        assert isinstance(answer, AIMessage)
        call = answer.tool_calls[0]
        assert call["name"] == "clock"
        result = clock.invoke(call)
        assert isinstance(result, ToolMessage)
        assert result.content.startswith("noon in")
        last = chat.bind_tools([clock]).invoke([asked, answer, result])
        assert last.usage_metadata is not None
        assert last.usage_metadata["input_tokens"] > 50


def test_streamed_calls_are_put_together(chat: ChatOpenAI) -> None:
    free = chat.model_copy(update={"max_tokens": None})
    total: Any = None
    for chunk in free.bind_tools([clock], tool_choice="any").stream("What time is it?"):
        total = chunk if total is None else total + chunk
    assert total.tool_calls[0]["args"]["zone"] in ("UTC", "CET")


def test_the_responses_api(served: Served) -> None:
    fields: dict[str, Any] = {"base_url": f"{served.url}/v1", "api_key": "none", "max_retries": 0}
    chat = ChatOpenAI(model="alpha", temperature=0, max_tokens=12, use_responses_api=True, **fields)
    assert chat.invoke("Hello").text
    assert "".join(chunk.text for chunk in chat.stream("Hello")) == chat.invoke("Hello").text


def test_embeddings(served: Served) -> None:
    fields: dict[str, Any] = {"base_url": f"{served.url}/v1", "api_key": "none"}
    embeddings = OpenAIEmbeddings(model="alpha", check_embedding_ctx_length=False, **fields)
    vectors = embeddings.embed_documents(["a", "b"])
    assert len(vectors) == 2
    assert embeddings.embed_query("a") == pytest.approx(vectors[0], abs=1e-5)
