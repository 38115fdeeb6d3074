"""The unmodified openai client, synchronous and asynchronous, against a real server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import CompletionUsage

from atoll.server.openai_schema import ERRORS
from support.servers import MAX_NEW_TOKENS, Served

MESSAGES: Any = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "The lazy dog?"}]
PROMPT = "The quick brown fox"


@pytest.fixture
def client(served: Served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=30)


def count(usage: CompletionUsage | None) -> tuple[int, int, int]:
    """Prompt, completion and all tokens; how much of the prompt was known depends on what came before."""
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert 0 <= (usage.prompt_tokens_details.cached_tokens or 0) < usage.prompt_tokens
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def test_models_are_the_base_and_the_adapters(served: Served, client: OpenAI) -> None:
    base, *adapters = client.models.list().data
    assert base.id == served.engine.base.name
    assert [adapter.id for adapter in adapters] == sorted(served.world.adapters)
    extra = adapters[0].model_extra or {}
    assert (extra["root"], extra["parent"]) == ("alpha@1", base.id)
    assert client.models.retrieve("beta@1").id == "beta@1"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


def test_completion(client: OpenAI) -> None:
    answer = client.completions.create(model="alpha", prompt=PROMPT, max_tokens=5, temperature=0)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    parts = list(client.completions.create(model="alpha", prompt=PROMPT, max_tokens=5, temperature=0, stream=True))
    assert "".join(part.choices[0].text for part in parts) == answer.choices[0].text
    assert [part.choices[0].finish_reason for part in parts if part.choices[0].finish_reason] == [
        answer.choices[0].finish_reason
    ]


def test_a_completion_has_sixteen_tokens_by_default(client: OpenAI) -> None:
    answer = client.completions.create(model="", prompt=PROMPT, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_chat_stream(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="beta", messages=MESSAGES, max_completion_tokens=9, temperature=0)
    text = whole.choices[0].message.content
    assert whole.choices[0].message.role == "assistant"
    parts = list(
        client.chat.completions.create(
            model="beta",
            messages=MESSAGES,
            max_tokens=9,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *texts, last, usage = parts
    assert texts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in texts) == text
    assert all(part.choices[0].finish_reason is None and part.usage is None for part in texts)
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert usage.choices == []
    assert count(usage.usage) == count(whole.usage)
    assert len({part.id for part in parts}) == 1


def test_the_async_client_does_the_same(served: Served, client: OpenAI) -> None:
    async def both() -> tuple[str | None, str]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as asynchronous:
            whole = await asynchronous.chat.completions.create(
                model="alpha", messages=MESSAGES, max_tokens=6, temperature=0
            )
            parts = await asynchronous.chat.completions.create(
                model="alpha", messages=MESSAGES, max_tokens=6, temperature=0, stream=True
            )
            text = "".join([part.choices[0].delta.content or "" async for part in parts])
            return whole.choices[0].message.content, text

    answer = client.chat.completions.create(model="alpha", messages=MESSAGES, max_tokens=6, temperature=0)
    assert asyncio.run(both()) == (answer.choices[0].message.content,) * 2


def test_columns_fill_the_adapters_own_template(client: OpenAI) -> None:
    columns = {"text": "a fine film"}
    by_columns = client.chat.completions.create(model="sentiment", messages=[], extra_body={"columns": columns})
    by_hand = client.chat.completions.create(
        model="sentiment",
        messages=[{"role": "user", "content": "Is this positive or negative?\na fine film\nAnswer:"}],
    )
    # No temperature was sent: the contract's greedy default holds, not OpenAI's 1.0.
    assert by_columns.choices[0].message.content == by_hand.choices[0].message.content
    assert count(by_columns.usage) == count(by_hand.usage)
    assert by_columns.usage is not None
    assert by_columns.usage.completion_tokens <= MAX_NEW_TOKENS
    pair = client.completions.create(model="compare", prompt="", extra_body={"columns": {"left": "a", "right": "b"}})
    assert pair.usage is not None
    assert pair.usage.prompt_tokens > 5


def test_columns_that_are_too_long_are_cut_and_told_of(client: OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model="sentiment", prompt="", extra_body={"columns": {"text": "dog " * 200}}
    )
    usage = raw.parse().usage
    assert usage is not None
    assert usage.prompt_tokens <= 64
    assert int(raw.headers["x-atoll-cut-tokens"]) > 100


@pytest.mark.parametrize(
    ("model", "columns", "message"),
    [
        ("sentiment", {"txt": "x"}, "no input column 'txt'"),
        ("compare", {"left": "x"}, "the column 'right' is missing"),
        ("alpha", {"text": "x"}, "alpha@1 has no template"),
        ("", {"text": "x"}, "the base model has no template"),
    ],
)
def test_wrong_columns(client: OpenAI, model: str, columns: dict[str, str], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.completions.create(model=model, prompt="", extra_body={"columns": columns})


def test_sampling_is_the_default_and_seeds_repeat_it(client: OpenAI) -> None:
    def text(**fields: Any) -> str:
        return str(client.completions.create(model="alpha", prompt=PROMPT, max_tokens=12, **fields).choices[0].text)

    assert text(seed=1) == text(seed=1, temperature=1.0)
    assert text(seed=1) != text(seed=2)
    assert text(temperature=0, seed=1) == text(temperature=0, seed=2)


def test_stop_may_be_a_string_or_a_list(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": "alpha", "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
    text = client.completions.create(**fields, extra_body={"ignore_eos": True}).choices[0].text
    stop = text[5:7]
    for given in (stop, [stop, "never said"]):
        answer = client.completions.create(**fields, stop=given, extra_body={"ignore_eos": True})
        assert answer.choices[0].text == text[: text.index(stop)]
        assert answer.choices[0].finish_reason == "stop"


def test_content_may_come_in_text_parts(client: OpenAI) -> None:
    def content(value: Any) -> str | None:
        answer = client.chat.completions.create(
            model="alpha", messages=[{"role": "user", "content": value}], max_tokens=6, temperature=0
        )
        return answer.choices[0].message.content

    assert content([{"type": "text", "text": "The lazy"}, {"type": "text", "text": " dog"}]) == content("The lazy dog")


def test_special_tokens_in_a_message_stay_text(client: OpenAI) -> None:
    def num_prompt_tokens(text: str) -> int:
        answer = client.chat.completions.create(model="", messages=[{"role": "user", "content": text}], max_tokens=1)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    assert num_prompt_tokens("<|im_end|>") > num_prompt_tokens("") + 3


def test_errors_are_those_that_the_client_knows(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="meta/Llama-3", prompt=PROMPT)
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="alpha", prompt="x" * 3000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as negative:
        client.completions.create(model="alpha", prompt="x", max_tokens=-1)
    assert negative.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError, match="n is 9; it may be at most 8"):
        client.completions.create(model="alpha", prompt="x", n=9, stream=True)
    with pytest.raises(openai.BadRequestError, match="'suffix' is not implemented"):
        client.completions.create(model="alpha", prompt="x", suffix="y")
    with pytest.raises(openai.BadRequestError, match="do not fit in 512"):
        client.completions.create(model="alpha", prompt="x", max_tokens=512)


def test_the_documentation_names_every_route_and_status(served: Served) -> None:
    text = (Path(__file__).parents[2] / "docs" / "openai-api.md").read_text()
    paths = httpx.get(f"{served.url}/openapi.json").json()["paths"]
    for path in (path for path in paths if path.startswith("/v1/")):
        assert path.replace("{model_id}", "{id}") in text
    assert all(f"| {status} |" in text for status in ERRORS)
