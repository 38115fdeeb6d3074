"""Whatever is sent, the answer is a right code with a JSON body, and the server goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2 as httpx
import pytest

from atoll.errors import RequestInvalid
from atoll.server import body_routes, errors
from support.servers import Served

LORAX, OPENAI, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
JSON_TYPE = {"Content-Type": "application/json"}


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=30) as client:
        yield client


def check_error(response: httpx.Response, status: int, path: str) -> str:
    """The error's message, from the dialect's shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    if path.startswith("/v1/"):
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        return str(body["error"]["message"])
    assert set(body) == {"error", "error_type"}
    return str(body["error"])


BROKEN_BODIES = {
    "no JSON": b"{",
    "empty": b"",
    "an array": b"[]",
    "a string": b'"x"',
    "null": b"null",
    "no UTF-8": b'{"inputs": "\xff"}',
    "deep": b'{"inputs":' + b"[" * 100_000,
    "half a surrogate pair": b'{"inputs": "\\ud800", "prompt": "\\ud800", "messages": "\\ud800"}',
    "half a surrogate pair as a key": b'{"\\udfff": 1}',
    "a number of 5000 digits": b'{"inputs": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("path", [LORAX, "/", "/generate_stream", OPENAI, CHAT])
@pytest.mark.parametrize("name", BROKEN_BODIES)
def test_broken_bodies(client: httpx.Client, path: str, name: str) -> None:
    response = client.post(path, content=BROKEN_BODIES[name], headers=JSON_TYPE)
    check_error(response, 400 if path.startswith("/v1/") else 422, path)


WHY_NOT_JSON = {
    "no JSON": "at character 1",
    "no UTF-8": "not UTF-8",
    "deep": "nested too deeply",
    "a number of 5000 digits": "too many digits",
    "an array": "not a JSON object",
}


@pytest.mark.parametrize("name", WHY_NOT_JSON)
def test_what_is_wrong_with_a_broken_body_is_said(client: httpx.Client, name: str) -> None:
    response = client.post(LORAX, content=BROKEN_BODIES[name], headers=JSON_TYPE)
    assert WHY_NOT_JSON[name] in check_error(response, 422, LORAX)


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"])
def test_the_kinds_of_json(client: httpx.Client, kind: str) -> None:
    body = b'{"inputs": "x", "parameters": {"max_new_tokens": 1}}'
    assert client.post(LORAX, content=body, headers={"Content-Type": kind}).status_code == 200


MANY_FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "messages": (CHAT, {"messages": [{}] * 100_000}),
    "items": ("/v1/responses", {"input": [{}] * 100_000}),
    "texts": ("/v1/embeddings", {"input": [[]] * 100_000}),
    "stop strings": (LORAX, {"inputs": "x", "parameters": {"stop": [1] * 100_000}}),
    "keys": (OPENAI, {"prompt": "x"} | {f"k{i}": 1 for i in range(50_000)}),
    "biases": (OPENAI, {"prompt": "x", "logit_bias": {f"k{i}": "x" for i in range(50_000)}}),
}


@pytest.mark.parametrize("name", MANY_FAULTS)
def test_a_body_of_a_hundred_thousand_faults_makes_no_list_of_them(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    counts: list[int] = []
    explain = errors.from_validation

    def count(found: Sequence[Any], body: object) -> RequestInvalid:
        counts.append(len(found))
        return explain(found, body)

    monkeypatch.setattr(body_routes, "from_validation", count)
    path, body = MANY_FAULTS[name]
    check_error(client.post(path, json=body), 400 if path.startswith("/v1/") else 422, path)
    assert sum(counts) <= 20


@pytest.mark.parametrize("path", [LORAX, OPENAI])
@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/json"}])
def test_a_body_without_its_content_type(client: httpx.Client, path: str, headers: dict[str, str]) -> None:
    response = client.post(path, content=b'{"inputs": "x", "prompt": "x"}', headers=headers)
    assert "Content-Type" in check_error(response, 400 if path.startswith("/v1/") else 422, path)


WRONG_PARAMETERS: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": -1}, "max_new_tokens"),
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"max_new_tokens": "5"}, "max_new_tokens"),
    ({"max_new_tokens": 1.5}, "max_new_tokens"),
    ({"max_new_tokens": 10**30}, "do not fit"),
    ({"max_new_tokens": 511}, "at most 510"),
    ({"temperature": -0.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": 0}, "top_k"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"stop": [""]}, "stop"),
    ({"stop": "x"}, "stop"),
    ({"stop": ["x"] * 17}, "stop strings"),
    ({"stop": ["x" * 257]}, "stop strings"),
    ({"return_k_alternatives": 21}, "return_k_alternatives"),
    ({"adapter_source": "ftp"}, "adapter_source"),
    ({"adapter_id": 5}, "adapter_id"),
    ({"details": "yes"}, "details"),
    ({"typical_p": 0}, "typical_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"frequency_penalty": 2.1}, "frequency_penalty"),
    ({"presence_penalty": -2.1}, "presence_penalty"),
    ({"truncate": 0}, "truncate"),
    ({"best_of": 0}, "best_of"),
    ({"best_of": 2}, "best_of needs sampling"),
    ({"best_of": 10**30, "do_sample": True}, "best_of"),
    ({"api_token": 5}, "api_token"),
    ({"merged_adapters": {"ids": ["a", "b"], "weights": [1]}}, "2 ids and 1 weights"),
    ({"merged_adapters": {}}, "merged_adapters"),
    ({"merged_adapters": {"ids": ["a"], "weights": [1]}, "adapter_id": "a"}, "not both"),
    ({"response_format": {"type": "yaml"}}, "response_format"),
    ({"watermark": True}, "'watermark' is not implemented"),
]


@pytest.mark.parametrize(("parameters", "message"), WRONG_PARAMETERS, ids=[str(p)[:40] for p, _ in WRONG_PARAMETERS])
def test_wrong_lorax_parameters(client: httpx.Client, parameters: dict[str, Any], message: str) -> None:
    for path in (LORAX, "/generate_stream"):
        response = client.post(path, json={"inputs": "the", "parameters": parameters})
        assert message in check_error(response, 422, path)
        assert response.json()["error_type"] == "validation"


def test_lorax_tolerates_nulls_and_keys_that_it_never_had(client: httpx.Client) -> None:
    parameters = {"max_new_tokens": 2, "adapter_id": None, "stop": None, "merged_adapters": None, "colour": "red"}
    response = client.post(LORAX, json={"inputs": "x", "parameters": parameters, "stream": False, "x": 1})
    assert response.status_code == 200
    assert client.post("/", json={"inputs": "x", "parameters": None, "stream": None}).status_code == 200


@pytest.mark.parametrize("name", ["adapter_id", "adapter_source", "merged_adapters", "api_token", "colour"])
def test_embed_tolerates_nulls_and_keys_that_it_never_had(client: httpx.Client, name: str) -> None:
    plain = client.post("/embed", json={"inputs": "x"}).json()
    for parameters in ({name: None}, None):
        response = client.post("/embed", json={"inputs": "x", "parameters": parameters, "x": None})
        assert (response.status_code, response.json()) == (200, plain)


WRONG_OPENAI: list[tuple[str, dict[str, Any], str]] = [
    (OPENAI, {"max_tokens": 0}, "max_tokens"),
    (OPENAI, {"max_tokens": "3"}, "max_tokens"),
    (OPENAI, {"temperature": 2.5}, "temperature"),
    (OPENAI, {"prompt": ["a", 1]}, "prompt is none of"),
    (OPENAI, {"prompt": [1, 2.5]}, "prompt is none of"),
    (OPENAI, {"prompt": None}, "neither"),
    (OPENAI, {"prompt": ""}, "neither"),
    (OPENAI, {"columns": {"text": "x"}}, "both"),
    (OPENAI, {"columns": {"text": 1}, "prompt": None}, "columns"),
    (OPENAI, {"logprobs": True}, "logprobs"),
    (OPENAI, {"echo": 1}, "echo"),
    (OPENAI, {"logit_bias": {"5": "1"}}, "logit_bias"),
    (OPENAI, {"frequency_penalty": 2.5}, "frequency_penalty"),
    (OPENAI, {"suffix": "x"}, "'suffix' is not implemented"),
    (OPENAI, {"colour": "red"}, "'colour' is not known"),
    (OPENAI, {"stream_options": {"include_usage": True}}, "stream_options"),
    (OPENAI, {"stream": True, "stream_options": {"x": 1}}, "'stream_options.x' is not known"),
    (OPENAI, {"model": 3}, "model"),
    (CHAT, {"messages": []}, "neither"),
    (CHAT, {"messages": "hello"}, "messages"),
    (CHAT, {"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "mood": "bad"}]}, "mood"),
    (CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, "different things"),
    (CHAT, {"response_format": {"type": "yaml"}}, "response_format"),
    (CHAT, {"logprobs": 5}, "logprobs"),
]


@pytest.mark.parametrize(("path", "fields", "message"), WRONG_OPENAI, ids=[str(f)[:40] for _, f, _ in WRONG_OPENAI])
def test_wrong_openai_parameters(client: httpx.Client, path: str, fields: dict[str, Any], message: str) -> None:
    body: dict[str, Any] = {"model": "alpha", "max_tokens": 2}
    body |= {"prompt": "x"} if path == OPENAI else {"messages": [{"role": "user", "content": "x"}]}
    response = client.post(path, json=body | fields)
    assert message in check_error(response, 400, path)
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_what_is_off_may_be_said(client: httpx.Client) -> None:
    body = {"model": "", "prompt": "x", "max_tokens": 1, "n": 1, "best_of": 1, "echo": False, "logit_bias": {}}
    assert client.post(OPENAI, json=body | {"logprobs": None, "suffix": "", "user": "me"}).status_code == 200


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none(client: httpx.Client, value: str) -> None:
    body = f'{{"model": "alpha", "prompt": "x", "temperature": {value}}}'
    check_error(client.post(OPENAI, content=body, headers=JSON_TYPE), 400, OPENAI)


@pytest.mark.parametrize("path", [LORAX, OPENAI, CHAT])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(client: httpx.Client, path: str, chunked: bool) -> None:
    body = json.dumps({"inputs": "x" * (3 << 20)}).encode()
    pieces = (body[start : start + 65536] for start in range(0, len(body), 65536))
    response = client.post(path, content=pieces if chunked else body, headers=JSON_TYPE)
    assert "larger than" in check_error(response, 413, path)


@pytest.mark.parametrize(
    "model", ["nobody", "alpha@9", "alpha@", "../alpha", "/etc/passwd", "a" * 600, "a\0b", "Ünï", "\r\nX-Evil: 1"]
)
def test_unknown_adapters(client: httpx.Client, model: str) -> None:
    response = client.post(OPENAI, json={"model": model, "prompt": "x"})
    if model == "alpha@":
        assert response.status_code == 200  # no revision asked for: the latest
        return
    check_error(response, 404, OPENAI)
    assert response.json()["error"]["code"] == "model_not_found"
    check_error(client.post(LORAX, json={"inputs": "x", "parameters": {"adapter_id": model}}), 424, LORAX)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/nothing", 404),
        ("PUT", LORAX, 405),
        ("DELETE", CHAT, 405),
        ("GET", "/redoc", 404),
    ],
)
def test_other_addresses_and_methods(client: httpx.Client, method: str, path: str, status: int) -> None:
    check_error(client.request(method, path), status, path)


def test_no_message_tells_where_things_lie(client: httpx.Client, served: Served) -> None:
    for model in ("nobody", "alpha@9"):
        text = client.post(OPENAI, json={"model": model, "prompt": "x"}).text
        assert str(served.store.root) not in text


def test_the_server_goes_on(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.post(OPENAI, json={"model": "alpha", "prompt": "x", "max_tokens": 1}).status_code == 200
