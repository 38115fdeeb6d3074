"""LoRAX's addresses, headers and errors, as whoever has no client of LoRAX's own meets them."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from lorax import AsyncClient
from lorax.errors import OverloadedError
from peft import PeftModel
from pydantic import TypeAdapter
from transformers import AutoModelForCausalLM

from atoll import __version__
from atoll.adapters.catalog import AdapterCatalog
from atoll.engine import Request, SamplingParams
from atoll.server.app import create_app
from atoll.server.lorax_schema import Embedding, Generated, LoraxError, SimpleToken, StreamEvent
from atoll.server.settings import ServerSettings
from atoll.text.prompt import encode_text
from support.servers import Served, read_events, served_world, serving

PROMPT = "The quick brown fox"
TIMES = [
    "x-compute-time",
    "x-total-time",
    "x-validation-time",
    "x-queue-time",
    "x-inference-time",
    "x-time-per-token",
    "x-time-to-first-token",
    "x-time-per-output-token",
]
LORAX_HEADERS = {
    *TIMES,
    "x-compute-type",
    "x-compute-characters",
    "x-prompt-tokens",
    "x-generated-tokens",
    "x-skipped-tokens",
    "x-total-tokens",
    "x-model-id",
    "x-adapter-id",
    "x-adapter-source",
}
# Each parameter of LoRAX, as its own document lists them.
PARAMETERS = [
    *("adapter_id", "adapter_source", "merged_adapters", "api_token"),
    *("do_sample", "temperature", "top_k", "top_p", "typical_p", "best_of", "seed"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty", "watermark", "response_format"),
    *("max_new_tokens", "ignore_eos_token", "stop", "truncate", "apply_chat_template"),
    *("return_full_text", "details", "decoder_input_details", "return_k_alternatives"),
]


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=30) as client:
        yield client


def generate(client: httpx.Client, path: str = "/generate", **parameters: Any) -> httpx.Response:
    return client.post(path, json={"inputs": PROMPT, "parameters": {"max_new_tokens": 5} | parameters})


def lorax_headers(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name in LORAX_HEADERS}


def test_every_header_of_lorax(served: Served, client: httpx.Client) -> None:
    response = generate(client, adapter_id="alpha", ignore_eos_token=True)
    found = lorax_headers(response)
    num_prompt_tokens = len(encode_text(served.engine.base.tokenizer, PROMPT))
    assert set(found) == LORAX_HEADERS
    times = {name: int(found.pop(name)) for name in TIMES}
    assert found == {
        "x-compute-type": "cpu",
        "x-compute-characters": str(len(PROMPT)),
        "x-prompt-tokens": str(num_prompt_tokens),
        "x-generated-tokens": "5",
        "x-skipped-tokens": "0",
        "x-total-tokens": str(num_prompt_tokens + 5),
        "x-model-id": served.engine.base.name,
        "x-adapter-id": "alpha",
        "x-adapter-source": "store",
    }
    assert all(time_ms >= 0 for time_ms in times.values())
    parts = times["x-validation-time"] + times["x-queue-time"] + times["x-inference-time"]
    assert parts <= times["x-total-time"] == times["x-compute-time"]
    assert times["x-time-to-first-token"] <= times["x-total-time"]
    assert times["x-time-per-token"] <= times["x-inference-time"]


def test_the_base_has_no_adapter_headers_and_errors_have_none(client: httpx.Client) -> None:
    assert set(lorax_headers(generate(client))) == LORAX_HEADERS - {"x-adapter-id", "x-adapter-source"}
    assert not lorax_headers(generate(client, adapter_id="nobody"))
    assert not lorax_headers(generate(client, top_k=0))


def test_a_stream_has_the_headers_that_are_known_before_it(client: httpx.Client) -> None:
    found = lorax_headers(generate(client, "/generate_stream", adapter_id="gamma", adapter_source="local"))
    assert set(found) == {
        "x-compute-type",
        "x-compute-characters",
        "x-model-id",
        "x-adapter-id",
        "x-adapter-source",
    }
    assert (found["x-adapter-id"], found["x-adapter-source"]) == ("gamma", "local")


def test_no_name_breaks_a_header(served: Served, client: httpx.Client) -> None:
    name = "Ünï 100%\r\nX-Evil: 1"
    root = served.store.root.parent
    shutil.copytree(root / "gamma", root / name)
    response = generate(client, adapter_id=name, adapter_source="local")
    assert response.status_code == 200
    assert response.headers["x-adapter-id"] == "%C3%9Cn%C3%AF%20100%25%0D%0AX-Evil:%201"
    assert "x-evil" not in response.headers


@pytest.mark.parametrize("path", ["/", "/invocations"])
def test_the_root_answers_a_list_or_a_stream(client: httpx.Client, path: str) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 3, "ignore_eos_token": True}}
    (whole,) = client.post(path, json=body).json()
    events = read_events(client.post(path, json=body | {"stream": True}).text)
    assert [event["generated_text"] for event in events] == [None, None, whole["generated_text"]]


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
def test_every_parameter_may_be_null(client: httpx.Client, path: str, name: str) -> None:
    body = {"inputs": "x", "parameters": {"max_new_tokens": 1} | {name: None}, "colour": None}
    if name == "max_new_tokens":
        body["parameters"] = {name: None, "adapter_id": "sentiment"}  # the contract says how many
    assert client.post(path, json=body).status_code == 200


def test_answers_are_what_the_openapi_document_says(client: httpx.Client) -> None:
    def check(model: Any, content: Any) -> None:
        TypeAdapter(model).validate_python(content, strict=False)

    details: dict[str, Any] = {"details": True, "decoder_input_details": True, "return_k_alternatives": 2}
    check(Generated, generate(client, **details).json())
    check(Generated, generate(client, **details, best_of=2, do_sample=True).json())
    check(Generated, generate(client).json())
    for event in read_events(generate(client, "/generate_stream", details=True, return_k_alternatives=1).text):
        check(StreamEvent, event)
    check(list[SimpleToken], client.post("/tokenize", json={"inputs": PROMPT}).json())
    check(Embedding, client.post("/embed", json={"inputs": PROMPT}).json())
    check(LoraxError, generate(client, top_k=0).json())


def test_the_openapi_document_names_every_answer(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/", "/invocations", "/generate", "/generate_stream", "/embed", "/tokenize"):
        responses = paths[path]["post"]["responses"]
        assert {"200", "401", "413", "422", "424", "429", "500"} <= set(responses)
        for status in ("422", "424", "429", "500"):
            content = responses[status]["content"]["application/json"]["schema"]
            assert content == {"$ref": "#/components/schemas/LoraxError"}
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    described = schemas["Parameters"]["properties"]
    assert set(PARAMETERS) == set(described)
    assert all({"type": "null"} in field.get("anyOf", ()) or None in field["enum"] for field in described.values())


def test_prefill_details_are_the_models_own_log_probabilities(served: Served, client: httpx.Client) -> None:
    response = generate(client, adapter_id="delta", decoder_input_details=True).json()
    ids = encode_text(served.engine.base.tokenizer, PROMPT)
    with torch.no_grad():
        expected = reference(served, "delta")(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    prefill = response["details"]["prefill"]
    assert [token["id"] for token in prefill] == ids
    assert "".join(token["text"] for token in prefill) == PROMPT
    assert [token["logprob"] for token in prefill] == [
        None,
        *(pytest.approx(float(expected[place, token_id]), abs=1e-4) for place, token_id in enumerate(ids[1:])),
    ]


@pytest.mark.parametrize("path", ["/generate_stream", "/"])
@pytest.mark.parametrize("wanted", [{"best_of": 2, "do_sample": True}, {"decoder_input_details": True}], ids=str)
def test_what_only_a_whole_answer_has_is_refused_in_a_stream(
    client: httpx.Client, path: str, wanted: dict[str, Any]
) -> None:
    response = client.post(path, json={"inputs": PROMPT, "parameters": wanted, "stream": True})
    assert response.status_code == 422
    assert f"{next(iter(wanted))} is not for streams" in response.json()["error"]


def test_several_answers_with_a_seed_are_those_of_the_seeds_that_follow(client: httpx.Client) -> None:
    wanted: dict[str, Any] = {"do_sample": True, "temperature": 1.5, "details": True}
    together = generate(client, best_of=3, seed=11, **wanted).json()["details"]
    answers = {answer["seed"]: answer["tokens"] for answer in (together, *together["best_of_sequences"])}
    assert set(answers) == {11, 12, 13}
    for seed, tokens in answers.items():
        alone = generate(client, seed=seed, **wanted).json()["details"]["tokens"]
        assert [token["id"] for token in alone] == [token["id"] for token in tokens]


@pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty"])
def test_penalties_reach_the_engine(served: Served, client: httpx.Client, penalty: str) -> None:
    ids = tuple(encode_text(served.engine.base.tokenizer, PROMPT))
    answers = []
    for value in (0.0, 2.0, -2.0):
        fields: dict[str, Any] = {"max_new_tokens": 60, "temperature": 2.0, "seed": 1, penalty: value}
        sampling = SamplingParams(ignore_eos=True, **fields)
        (expected,) = served.engine.generate([Request(prompt_ids=ids, sampling=sampling)])
        answers.append(generate(client, ignore_eos_token=True, **fields).json()["generated_text"])
        assert answers[-1] == expected.text
    assert len(set(answers)) == 3


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"type": "regex", "regex": "[0-9]{3}-[0-9]{2}"}, r"[0-9]{3}-[0-9]{2}"),
        ({"type": "json_schema", "schema": {"enum": ["yes", "no"]}}, r'"(yes|no)"'),
        ({"type": "json_object", "schema": {"type": "integer", "minimum": 0, "maximum": 9}}, r"[0-9]"),
    ],
    ids=str,
)
@pytest.mark.parametrize("adapter", ["", "alpha", "sentiment"])
def test_answers_have_the_form_that_was_asked_for(
    client: httpx.Client, form: dict[str, Any], pattern: str, adapter: str
) -> None:
    wanted = {"response_format": form, "max_new_tokens": 30, "adapter_id": adapter, "details": True}
    text = generate(client, **wanted).json()["generated_text"]
    assert re.fullmatch(pattern, text)
    events = read_events(generate(client, "/generate_stream", **wanted).text)
    assert events[-1]["generated_text"] == text
    assert events[-1]["details"]["finish_reason"] == "eos_token"


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
@pytest.mark.parametrize(
    "form",
    [
        {"type": "xml"},
        {},
        {"type": "regex"},
        {"type": "regex", "regex": "("},
        {"type": "regex", "regex": "a{1,100000}" * 50},
        {"type": "text", "schema": {}},
        {"type": "text", "regex": "a"},
        {"type": "json_object", "regex": "a"},
        {"type": "json_schema", "schema": "not an object"},
        {"type": "json_schema", "json_schema": {"type": "string"}},
    ],
    ids=lambda form: str(form)[:40],
)
def test_a_wrong_form_is_refused(client: httpx.Client, path: str, form: dict[str, Any]) -> None:
    response = generate(client, path, response_format=form)
    assert response.status_code == 422
    assert response.json()["error_type"] == "validation"


def test_plain_text_is_a_form_too(client: httpx.Client) -> None:
    plain = generate(client).json()
    assert generate(client, response_format={"type": "text"}).json() == plain


def reference(served: Served, adapter: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(served.world.base_folder, dtype=torch.float32).eval()
    return PeftModel.from_pretrained(model, served.world.adapters[adapter].folder).eval() if adapter else model


@pytest.mark.parametrize("adapter", ["", "alpha"])
def test_an_embedding_is_the_mean_of_the_last_hidden_states(served: Served, client: httpx.Client, adapter: str) -> None:
    body = {"inputs": PROMPT, "parameters": {"adapter_id": adapter}}
    embedding = client.post("/embed", json=body).json()["embeddings"]
    ids = torch.tensor([encode_text(served.engine.base.tokenizer, PROMPT)])
    with torch.no_grad():
        states = reference(served, adapter)(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    assert embedding == pytest.approx(states.mean(0).tolist(), rel=1e-3, abs=1e-4)


def test_embeddings_fail_as_answers_do(client: httpx.Client) -> None:
    nobody = client.post("/embed", json={"inputs": "x", "parameters": {"adapter_id": "nobody"}})
    assert (nobody.status_code, nobody.json()["error_type"]) == (424, "generation")
    for body in ({"inputs": ""}, {"inputs": "x" * 2000}, {}, {"inputs": ["a", "b"]}):
        response = client.post("/embed", json=body)
        assert (response.status_code, response.json()["error_type"]) == (422, "validation")


@pytest.mark.parametrize("text", ["", "a", PROMPT, "Zürich, Kyōto 🏝️", "<|im_end|> is <|endoftext|> text"])
def test_tokens_are_those_of_a_prompt(served: Served, client: httpx.Client, text: str) -> None:
    tokens = client.post("/tokenize", json={"inputs": text}).json()
    assert [token["id"] for token in tokens] == encode_text(served.engine.base.tokenizer, text)
    assert all(token["text"] == text[token["start"] : token["stop"]] for token in tokens)
    places = [place for token in tokens for place in (token["start"], token["stop"])]
    assert (min(places, default=0), max(places, default=0)) == (0, len(text))
    assert client.post("/tokenize", json={"inputs": text, "add_special_tokens": False}).json() == tokens  # no BOS here


def test_a_text_to_cut_has_a_limit(client: httpx.Client) -> None:
    response = client.post("/tokenize", json={"inputs": "x" * (1 << 18)})
    assert (response.status_code, response.json()["error_type"]) == (422, "validation")
    assert (
        client.post(
            "/tokenize", content=b'{"inputs": "\\ud800"}', headers={"Content-Type": "application/json"}
        ).status_code
        == 422
    )


def test_info_tells_the_limits(served: Served, client: httpx.Client) -> None:
    info = client.get("/info").json()
    assert info == {
        "model_id": served.engine.base.name,
        "model_sha": served.engine.base.digest,
        "model_dtype": "torch.float32",
        "model_device_type": "cpu",
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": 256,
        "max_best_of": 4,
        "max_stop_sequences": 16,
        "max_input_length": 511,
        "max_total_tokens": 512,
        "version": __version__,
        "sha": None,
        "docker_label": None,
        "request_logger_url": None,
    }


@pytest.mark.parametrize("path", ["/", "/ping"])
def test_health_is_an_empty_answer(served: Served, client: httpx.Client, path: str) -> None:
    response = client.get(path, headers={"Accept": "text/html"})
    assert (response.status_code, response.content) == (200, b"")
    engine = served.world.engine()
    with serving(create_app(engine, engine.base, AdapterCatalog(served.store))) as url:  # nobody has started it
        sick = httpx.get(url + path)
    assert sick.status_code == 503
    assert sick.json() == {"error": "unhealthy", "error_type": "healthcheck"}


def test_too_many_answers_at_once_are_told_to_come_back(tmp_path: Path) -> None:
    with served_world(tmp_path, settings=ServerSettings(max_open_requests=3)) as served:
        parameters = {"best_of": 4, "do_sample": True, "max_new_tokens": 2}
        response = httpx.post(f"{served.url}/generate", json={"inputs": "x", "parameters": parameters})
        assert (response.status_code, response.json()["error_type"]) == (429, "overloaded")
        assert response.headers["retry-after"]
        client = AsyncClient(served.url, timeout=30)
        with pytest.raises(OverloadedError, match="open already"):
            asyncio.run(client.generate("x", **parameters))
        assert asyncio.run(client.generate("x", **(parameters | {"best_of": 3}))).details.best_of_sequences


def test_a_token_is_never_shown(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    secret = "hf_" + "s3cr3t" * 5
    caplog.set_level(logging.DEBUG)
    for wanted in (
        {"api_token": secret},
        {"api_token": secret, "adapter_id": "nobody"},
        {"api_token": secret, "top_k": 0},
        {"api_token": [secret]},
        {"api_token": secret * 100},
    ):
        for path in ("/generate", "/generate_stream", "/embed"):
            assert secret not in generate(client, path, **wanted).text
    assert secret not in caplog.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", b"{"),
        ("/tokenize", b"[]"),
        ("/invocations", b"null"),
        ("/tokenize", json.dumps({"inputs": 5}).encode()),
    ],
)
def test_errors_are_objects_everywhere(client: httpx.Client, path: str, body: bytes) -> None:
    response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert LoraxError.model_validate(response.json()).error_type == "validation"


def test_a_wrong_method_is_told_the_right_ones(client: httpx.Client) -> None:
    for path, methods in (("/", "GET, POST"), ("/generate", "POST"), ("/info", "GET")):
        response = client.request("TRACE", path)
        assert response.status_code == 405
        assert response.headers["allow"] == methods
