"""Vectors by the unmodified openai client."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI

from support.servers import Served

TEXTS = ["The quick brown fox", "Classify the ticket"]


@pytest.fixture
def client(served: Served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=30)


def test_texts_and_ids_have_the_same_vectors_of_length_one(client: OpenAI, served: Served) -> None:
    ids = [served.engine.base.tokenizer.encode(text) for text in TEXTS]
    answer = client.embeddings.create(model="alpha", input=TEXTS)
    vectors = [item.embedding for item in answer.data]
    assert [item.index for item in answer.data] == [0, 1]
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)
    by_ids = [item.embedding for item in client.embeddings.create(model="alpha", input=ids).data]
    np.testing.assert_allclose(by_ids, vectors, atol=1e-5)
    alone = client.embeddings.create(model="alpha", input=TEXTS[1]).data[0].embedding
    np.testing.assert_allclose(alone, vectors[1], atol=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, ids))


def test_each_adapter_has_its_own_vectors(client: OpenAI) -> None:
    base, alpha, beta = (
        client.embeddings.create(model=m, input="x y").data[0].embedding for m in ("", "alpha", "beta")
    )
    assert not np.allclose(base, alpha, atol=1e-3)
    assert not np.allclose(alpha, beta, atol=1e-3)


def test_both_encodings_say_the_same(client: OpenAI) -> None:
    numbers = client.embeddings.create(model="alpha", input="x", encoding_format="float").data[0].embedding
    encoded: Any = client.embeddings.create(model="alpha", input="x", encoding_format="base64").data[0].embedding
    assert isinstance(encoded, str)
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(encoded), "<f4"), numbers, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dimensions": 5}, "'dimensions' is not implemented"),
        ({"input": ""}, "the prompt is empty"),
        ({"input": []}, "the prompt is empty"),
        ({"input": ["x"] * 65}, "the number of texts is 65"),
        ({"input": {"a": 1}}, "input is none of"),
        ({"input": "x" * 3000}, "do not fit"),
        ({"encoding_format": "int8"}, "encoding_format"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_done_is_refused(client: OpenAI, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.post("/embeddings", body={"model": "alpha", "input": "x"} | fields, cast_to=object)


def test_a_model_that_is_not_there(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nobody", input="x")
