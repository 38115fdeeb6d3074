"""The unmodified lorax-client and Predibase's copy of it, synchronous and asynchronous, against a real server."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from lorax import Client
from prometheus_client.parser import text_string_to_metric_families

from atoll.server.settings import ServerSettings
from atoll.text.prompt import encode_text
from support.lorax_clients import LIBRARIES, ClientLibrary, predibase_library
from support.servers import MAX_NEW_TOKENS, Served, served_world, wait_until

PROMPT = "The quick brown fox"


@pytest.fixture(params=list(LIBRARIES))
def library(request: pytest.FixtureRequest) -> ClientLibrary:
    return LIBRARIES[request.param]()


@pytest.fixture
def client(served: Served, library: ClientLibrary) -> Any:
    return library.client(served.url, timeout=30)


@pytest.mark.parametrize("adapter", [None, "alpha", "beta", "gamma", "delta"])
def test_greedy_answers_are_those_of_peft(served: Served, client: Any, adapter: str | None) -> None:
    response = client.generate(PROMPT, adapter_id=adapter, max_new_tokens=16, ignore_eos_token=True)
    ids = tuple(encode_text(served.engine.base.tokenizer, PROMPT))
    assert tuple(token.id for token in response.details.tokens) == served.world.reference(adapter, ids)
    assert response.details.prompt_tokens == len(ids)
    assert response.details.generated_tokens == 16
    assert response.details.finish_reason == "length"
    assert "".join(token.text for token in response.details.tokens) == response.generated_text


def test_a_stream_is_the_whole_answer_in_pieces(client: Any) -> None:
    whole = client.generate(PROMPT, adapter_id="alpha", max_new_tokens=12, ignore_eos_token=True)
    parts = list(client.generate_stream(PROMPT, adapter_id="alpha", max_new_tokens=12, ignore_eos_token=True))
    assert [part.token.id for part in parts] == [token.id for token in whole.details.tokens]
    assert "".join(part.token.text for part in parts) == whole.generated_text
    assert [part.generated_text for part in parts] == [None] * 11 + [whole.generated_text]
    assert parts[-1].details.generated_tokens == 12
    assert all(part.details is None for part in parts[:-1])


def test_the_async_client_does_the_same(library: ClientLibrary, served: Served, client: Any) -> None:
    async def both() -> tuple[str, str]:
        asynchronous = library.async_client(served.url, timeout=30)
        whole = await asynchronous.generate(PROMPT, adapter_id="beta", max_new_tokens=8)
        parts = [part async for part in asynchronous.generate_stream(PROMPT, adapter_id="beta", max_new_tokens=8)]
        return whole.generated_text, parts[-1].generated_text

    expected = client.generate(PROMPT, adapter_id="beta", max_new_tokens=8).generated_text
    assert asyncio.run(both()) == (expected, expected)


def test_a_seed_repeats_a_sampled_answer(client: Any) -> None:
    def sampled(seed: int) -> tuple[str, int | None]:
        response = client.generate(PROMPT, adapter_id="alpha", do_sample=True, seed=seed, max_new_tokens=12)
        return response.generated_text, response.details.seed

    assert sampled(7) == sampled(7)
    assert sampled(7)[0] != sampled(8)[0]
    assert sampled(7)[1] == 7
    assert client.generate(PROMPT, max_new_tokens=2).details.seed is None


def test_lorax_rules_for_sampling(client: Any) -> None:
    greedy = client.generate(PROMPT, max_new_tokens=8).generated_text
    assert client.generate(PROMPT, max_new_tokens=8, do_sample=True, temperature=0).generated_text == greedy
    assert client.generate(PROMPT, max_new_tokens=8, temperature=1.0).generated_text == greedy
    assert client.generate(PROMPT, max_new_tokens=8, top_k=1).generated_text == greedy
    drawn = client.generate(PROMPT, max_new_tokens=8, temperature=5.0, seed=1)
    assert drawn.generated_text != greedy
    assert drawn.details.seed == 1


def test_stop_strings_end_the_answer_and_are_left_out(client: Any) -> None:
    whole = client.generate(PROMPT, adapter_id="alpha", max_new_tokens=16, ignore_eos_token=True)
    text = whole.generated_text
    stop = text[4:6]
    stopped = client.generate(
        PROMPT, adapter_id="alpha", max_new_tokens=16, ignore_eos_token=True, stop_sequences=[stop]
    )
    assert stopped.generated_text == text[: text.index(stop)]
    assert stopped.details.finish_reason == "stop_sequence"
    parts = list(
        client.generate_stream(
            PROMPT, adapter_id="alpha", max_new_tokens=16, ignore_eos_token=True, stop_sequences=[stop]
        )
    )
    assert "".join(part.token.text for part in parts) == stopped.generated_text == parts[-1].generated_text


def test_details_alternatives_and_full_text(client: Any) -> None:
    response = client.generate(PROMPT, max_new_tokens=3, return_k_alternatives=2, return_full_text=True)
    assert response.generated_text.startswith(PROMPT)
    for token in response.details.tokens:
        best, second = token.alternative_tokens
        assert best.id == token.id
        assert best.logprob >= second.logprob
    assert client.generate(PROMPT, max_new_tokens=3, details=False).details is None


def test_the_contract_gives_the_defaults(client: Any) -> None:
    by_contract = client.generate(PROMPT, adapter_id="sentiment", ignore_eos_token=True)
    assert by_contract.details.generated_tokens == MAX_NEW_TOKENS
    asked = client.generate(PROMPT, adapter_id="sentiment", ignore_eos_token=True, max_new_tokens=2)
    assert asked.details.generated_tokens == 2


def test_a_local_adapter_is_the_stored_one(client: Any) -> None:
    stored = client.generate(PROMPT, adapter_id="gamma", max_new_tokens=8).generated_text
    local = client.generate(PROMPT, adapter_id="gamma", adapter_source="local", max_new_tokens=8)  # the folder's name
    assert local.generated_text == stored
    assert stored != client.generate(PROMPT, max_new_tokens=8).generated_text


@pytest.mark.parametrize("path", ["../etc", "/etc", "store/../../x", "no-such-folder"])
def test_no_path_leads_out_of_the_roots(library: ClientLibrary, client: Any, path: str) -> None:
    with pytest.raises(library.generation_error, match="no adapter"):
        client.generate(PROMPT, adapter_id=path, adapter_source="local")


def test_errors_are_those_that_the_client_knows(library: ClientLibrary, served: Served, client: Any) -> None:
    with pytest.raises(library.generation_error, match="no adapter 'nobody'"):
        client.generate(PROMPT, adapter_id="nobody")
    with pytest.raises(library.validation_error, match="do not fit in 512 tokens"):
        client.generate("x" * 2000)
    with pytest.raises(library.validation_error, match=r"watermark.*not implemented"):
        list(client.generate_stream(PROMPT, watermark=True))
    with pytest.raises(library.generation_error, match="no adapter"):
        list(client.generate_stream(PROMPT, adapter_id="nobody"))

    async def stream() -> None:
        async for _ in library.async_client(served.url, timeout=30).generate_stream(PROMPT, adapter_id="nobody"):
            pass

    with pytest.raises(library.generation_error, match="no adapter"):
        asyncio.run(stream())
    assert client.generate(PROMPT, max_new_tokens=1).details.generated_tokens == 1


def test_a_merge_of_one_adapter_and_nothing_is_that_adapter(library: ClientLibrary, tmp_path: Path) -> None:
    with served_world(tmp_path, settings=ServerSettings(adapter_cache=tmp_path / "cache")) as served:
        wanted: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos_token": True}
        merged = library.merged_adapters(
            ids=["alpha", "gamma"], weights=[1.0, 0.0], merge_strategy="linear", density=0.0
        )
        client = library.client(served.url, timeout=30)
        alone = client.generate(PROMPT, adapter_id="alpha", **wanted).generated_text
        assert client.generate(PROMPT, merged_adapters=merged, **wanted).generated_text == alone
        parts = list(client.generate_stream(PROMPT, merged_adapters=merged, **wanted))
        assert parts[-1].generated_text == alone
        half = merged.model_copy(update={"weights": [0.5, 0.5]})
        assert client.generate(PROMPT, merged_adapters=half, **wanted).generated_text != alone
        with pytest.raises(library.generation_error, match="no adapter 'nobody'"):
            client.generate(PROMPT, merged_adapters=merged.model_copy(update={"ids": ["alpha", "nobody"]}), **wanted)


def test_predibases_client_also_embeds_and_reads_the_metrics(served: Served) -> None:
    library = predibase_library()
    asynchronous = library.async_client(served.url, timeout=30)
    expected = Client(served.url, timeout=30).embed(PROMPT).embeddings
    assert asyncio.run(asynchronous.embed(PROMPT)).embeddings == pytest.approx(expected, abs=1e-5)
    metrics = library.client(served.url).metrics()  # the asynchronous one's fails for want of an attribute of its own
    assert any(family.samples for family in text_string_to_metric_families(metrics))


def test_a_client_that_leaves_stops_all_its_answers(tmp_path: Path) -> None:
    parameters = {"best_of": 4, "do_sample": True, "max_new_tokens": 480, "ignore_eos_token": True}
    body = json.dumps({"inputs": "x", "parameters": parameters}).encode()
    head = (
        f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with served_world(tmp_path) as served:
        with socket.create_connection(served.url.removeprefix("http://").split(":")) as connection:
            connection.sendall(head.encode() + body)
            wait_until(lambda: served.engine.stats().num_running == 4)

        def is_idle() -> bool:
            stats = served.engine.stats()
            return stats.num_running == stats.num_waiting == 0 and stats.num_free_blocks == stats.num_blocks

        wait_until(is_idle)
        assert served.engine.stats().num_generated_tokens < 4 * 480
