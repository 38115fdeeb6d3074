"""Every parameter of the unmodified lorax-client and of Predibase's reaches the engine, in all four ways to ask."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from lorax import AsyncClient, Client
from lorax.errors import ValidationError
from lorax.types import MergedAdapters, Response

from atoll.engine import Completion, Request, SamplingParams
from atoll.text.prompt import encode_chat, encode_text
from support.lorax_clients import LIBRARIES
from support.servers import Served

PROMPT = "The quick brown fox"
PERSON = {
    "type": "object",
    "properties": {"label": {"enum": ["good", "bad"]}, "score": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["label", "score"],
    "additionalProperties": False,
}
# Both clients' whole lists, each value one that could not be told from the default if it were dropped.
STREAMED: dict[str, Any] = {
    "adapter_id": "alpha",
    "adapter_source": "local",
    "merged_adapters": None,
    "api_token": "what-a-source-asks-for",
    "do_sample": True,
    "max_new_tokens": 7,
    "ignore_eos_token": True,
    "repetition_penalty": 1.7,
    "return_full_text": True,
    "seed": 5,
    "stop_sequences": ["no such text"],
    "temperature": 1.3,
    "top_k": 90,
    "top_p": 0.95,
    "truncate": 3,
    "typical_p": 0.9,
    "watermark": False,
    "response_format": None,
    "details": True,
}
WHOLE = STREAMED | {"best_of": 1, "decoder_input_details": True, "return_k_alternatives": 2}


@pytest.fixture
def client(served: Served) -> Client:
    return Client(served.url, timeout=30)


def by_engine(
    served: Served, ids: list[int], adapter: str | None = None, *, prompt_logprobs: int | None = None, **sampling: Any
) -> Completion:
    """What the engine itself says."""
    request = Request(
        prompt_ids=tuple(ids),
        sampling=SamplingParams(**({"max_new_tokens": 7, "ignore_eos": True} | sampling)),
        adapter=served.world.adapters[adapter] if adapter else None,
        prompt_logprobs=prompt_logprobs,
    )
    (completion,) = served.engine.generate([request])
    assert completion.error is None
    return completion


def prompt_ids(served: Served) -> list[int]:
    return encode_text(served.engine.base.tokenizer, PROMPT)


@pytest.fixture
def expected(served: Served) -> Completion:
    """The engine's answer to what STREAMED says."""
    wanted = {"seed": 5, "temperature": 1.3, "top_k": 90, "top_p": 0.95, "typical_p": 0.9, "repetition_penalty": 1.7}
    return by_engine(served, prompt_ids(served)[-3:], "alpha", prompt_logprobs=0, **wanted)


def check_whole(response: Response, expected: Completion) -> None:
    assert expected.finish is not None
    assert response.generated_text == PROMPT + expected.text
    details = response.details
    assert tuple(token.id for token in details.tokens) == expected.token_ids
    assert [token.logprob for token in details.tokens] == pytest.approx([t.logprob for t in expected.tokens], abs=1e-5)
    assert all(len(token.alternative_tokens) == 2 for token in details.tokens)
    scored = expected.finish.prompt_tokens
    assert [token.id for token in details.prefill] == [token.token_id for token in scored]
    assert details.prefill[0].logprob is None
    assert [t.logprob for t in details.prefill[1:]] == pytest.approx([t.logprob for t in scored[1:]], abs=1e-5)
    assert (details.prompt_tokens, details.generated_tokens, details.seed) == (3, 7, 5)


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_parameter_of_generate(served: Served, library: str, expected: Completion) -> None:
    clients = LIBRARIES[library]()
    check_whole(clients.client(served.url, timeout=30).generate(PROMPT, **WHOLE), expected)
    check_whole(asyncio.run(clients.async_client(served.url, timeout=30).generate(PROMPT, **WHOLE)), expected)


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_parameter_of_generate_stream(served: Served, library: str, expected: Completion) -> None:
    clients = LIBRARIES[library]()

    async def stream() -> list[Any]:
        asynchronous = clients.async_client(served.url, timeout=30)
        return [part async for part in asynchronous.generate_stream(PROMPT, **STREAMED)]

    whole = list(clients.client(served.url, timeout=30).generate_stream(PROMPT, **STREAMED))
    for parts in (whole, asyncio.run(stream())):
        assert tuple(part.token.id for part in parts) == expected.token_ids
        assert parts[-1].generated_text == PROMPT + expected.text
        assert (parts[-1].details.prompt_tokens, parts[-1].details.seed) == (3, 5)


@pytest.mark.parametrize(
    ("wanted", "sampling"),
    [
        ({"repetition_penalty": 3.0}, {"repetition_penalty": 3.0}),
        ({"typical_p": 0.5, "seed": 3}, {"typical_p": 0.5, "seed": 3, "temperature": 1.0}),
        ({"top_p": 0.5, "seed": 3}, {"top_p": 0.5, "seed": 3, "temperature": 1.0}),
        ({"top_k": 9, "seed": 3}, {"top_k": 9, "seed": 3, "temperature": 1.0}),
        ({"do_sample": True, "seed": 3}, {"seed": 3, "temperature": 1.0}),
        ({"temperature": 1.0}, {}),
    ],
    ids=str,
)
def test_each_kind_of_sampling_by_itself(
    served: Served, client: Client, wanted: dict[str, Any], sampling: dict[str, Any]
) -> None:
    response = client.generate(PROMPT, max_new_tokens=7, ignore_eos_token=True, **wanted)
    expected = by_engine(served, prompt_ids(served), **sampling)
    assert tuple(token.id for token in response.details.tokens) == expected.token_ids


def test_the_best_of_several_has_the_highest_mean_log_probability(client: Client) -> None:
    response = client.generate(PROMPT, adapter_id="beta", do_sample=True, temperature=2.0, best_of=4, max_new_tokens=9)
    best, others = response.details, response.details.best_of_sequences
    means = [sum(token.logprob for token in answer.tokens) / len(answer.tokens) for answer in (best, *others)]
    assert len(others) == 3
    assert means == sorted(means, reverse=True)
    assert len({best.seed, *(other.seed for other in others)}) == 4
    for other in others:
        again = client.generate(
            PROMPT, adapter_id="beta", do_sample=True, temperature=2.0, seed=other.seed, max_new_tokens=9
        )
        assert again.generated_text == other.generated_text
        assert [token.id for token in again.details.tokens] == [token.id for token in other.tokens]


def test_a_schema_is_kept_with_and_without_a_stream(client: Client) -> None:
    wanted: dict[str, Any] = {
        "adapter_id": "alpha",
        "response_format": {"type": "json_object", "schema": PERSON},
        "max_new_tokens": 120,
    }
    whole = client.generate(PROMPT, **wanted)
    parts = list(client.generate_stream(PROMPT, **wanted))
    answer = json.loads(whole.generated_text)
    assert set(answer) == {"label", "score"}
    assert answer["label"] in ("good", "bad")
    assert answer["score"] in range(10)
    assert whole.details.finish_reason == "eos_token"
    assert parts[-1].generated_text == whole.generated_text
    assert "".join(part.token.text for part in parts) == whole.generated_text


def test_truncate_comes_before_the_limits(client: Client) -> None:
    long = PROMPT * 200
    with pytest.raises(ValidationError, match="do not fit in 512 tokens"):
        client.generate(long, max_new_tokens=2)
    response = client.generate(long, truncate=500, max_new_tokens=12, ignore_eos_token=True)
    assert (response.details.prompt_tokens, response.details.generated_tokens) == (500, 12)
    with pytest.raises(ValidationError, match="at most 11"):
        client.generate(long, truncate=501, max_new_tokens=12)
    assert client.generate(PROMPT, truncate=500, max_new_tokens=1).details.prompt_tokens < 20


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"watermark": True}, "'watermark' is not implemented"),
        ({"best_of": 5, "do_sample": True}, "best_of must be at most 4"),
        ({"best_of": 2, "temperature": 0.0}, "best_of needs sampling"),
        ({"stop_sequences": ["x"] * 17}, "stop strings"),
        ({"return_k_alternatives": 21}, "return_k_alternatives"),
        ({"response_format": {"type": "json_object", "schema": {"type": "king"}}}, "cannot be used"),
        (
            {
                "merged_adapters": MergedAdapters(
                    ids=["alpha", "beta"], weights=[1, 1], merge_strategy="ties", density=0
                )
            },
            "density",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_refused_by_name(
    served: Served, client: Client, wanted: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        client.generate(PROMPT, **wanted)
    with pytest.raises(ValidationError, match=message):
        asyncio.run(AsyncClient(served.url, timeout=30).generate(PROMPT, **wanted))


def test_an_embedding_by_both_clients(served: Served, client: Client) -> None:
    request = Request(prompt_ids=tuple(prompt_ids(served)), sampling=SamplingParams(max_new_tokens=1), embed=True)
    (completion,) = served.engine.generate([request])
    assert completion.finish is not None
    for response in (client.embed(PROMPT), asyncio.run(AsyncClient(served.url, timeout=30).embed(PROMPT))):
        assert response.embeddings == pytest.approx(completion.finish.embedding, abs=1e-5)


def test_the_chat_template_is_applied_on_demand(served: Served) -> None:
    ids = encode_chat(served.engine.base.tokenizer, [{"role": "user", "content": PROMPT}])
    client = Client(served.url, timeout=30)
    # The client has no such parameter, so its own session sends it.
    client.generate(PROMPT, max_new_tokens=1)
    body = {"inputs": PROMPT, "parameters": {"apply_chat_template": True, "max_new_tokens": 7, "details": True}}
    assert client.session is not None
    (answer,) = client.session.post(served.url, json=body, timeout=30).json()
    assert answer["details"]["prompt_tokens"] == len(ids)
    assert answer["generated_text"] == by_engine(served, ids, ignore_eos=False).text
