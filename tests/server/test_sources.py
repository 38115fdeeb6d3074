"""Adapters from a hub and mixes over HTTP: who may use what, and what the answers are."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import httpx2 as httpx
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from atoll.server.keys.accounts import Accounts
from atoll.server.keys.database import Database, database_url
from atoll.server.keys.keys import KeyStore, NewKey
from atoll.server.settings import ServerSettings
from atoll.text.prompt import encode_text
from support.adapters import save_random_adapter
from support.buckets import SETTINGS, moto_endpoint
from support.engines import greedy
from support.hubs import TOKEN, FakeHub, fake_hub
from support.servers import Served, served_world
from support.tiny import make_model

PROMPT = "Is it?"
WANTED = {"max_new_tokens": 8, "ignore_eos_token": True, "details": True}
FROM_HUB = {"adapter_source": "hub"}


@dataclass
class Sources:
    """A server with keys that takes adapters from a hub. keys: by who holds them."""

    served: Served
    hub: FakeHub
    keys: dict[str, str]
    folder: Path

    def ask(self, who: str = "a", **parameters: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.keys[who]}"}
        body = {"inputs": PROMPT, "parameters": WANTED | parameters}
        return httpx.post(f"{self.served.url}/generate", json=body, headers=headers, timeout=60)

    def chat(self, who: str = "a", **fields: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.keys[who]}"}
        body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3} | fields
        return httpx.post(f"{self.served.url}/v1/chat/completions", json=body, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sources]:
    folder = tmp_path_factory.mktemp("sources")
    database = Database(database_url(str(folder / "atoll.db")))
    store = KeyStore(database)
    keys = {
        name: store.create(NewKey(**fields))[1]
        for name, fields in {
            "a": {"name": "a", "tenant": "a"},
            "b": {"name": "b", "tenant": "b"},
            "narrow": {"name": "narrow", "tenant": "b", "adapters": ("alpha", "hub:org/open*")},
        }.items()
    }
    with fake_hub() as hub, Accounts(database, folder / "journals") as accounts:
        settings = ServerSettings(
            remote_sources=("hub",),
            hub_endpoint=hub.url,
            private_adapter_hosts=("127.0.0.1",),
            adapter_cache=folder / "cache",
        )
        for seed, name in enumerate(("org/open", "org/secret")):
            adapter = save_random_adapter(folder / "hub" / name, make_model(), seed=seed + 50)
            hub.add(name, adapter, private=name == "org/secret")
        with served_world(folder, settings=settings, accounts=accounts) as served:
            yield Sources(served, hub, keys, folder)
    database.close()


def expected_ids(served: Served, *weighted: tuple[Path, float]) -> list[int]:
    """PEFT's own greedy answer under a weighted sum of adapters, made by its svd on the products."""
    base = AutoModelForCausalLM.from_pretrained(served.world.base_folder, dtype=torch.float32).eval()
    model = PeftModel.from_pretrained(base, weighted[0][0], adapter_name="0")
    for number, (folder, _) in enumerate(weighted[1:], start=1):
        model.load_adapter(folder, adapter_name=str(number))
    names, weights = [str(number) for number in range(len(weighted))], [weight for _, weight in weighted]
    model.add_weighted_adapter(names, weights, "mix", "svd", svd_rank=64, svd_full_matrices=False)
    model.set_adapter("mix")
    prompt = tuple(encode_text(served.engine.base.tokenizer, PROMPT))
    return list(greedy(model.eval(), prompt, 8))


def ids(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [token["id"] for token in answer.json()["details"]["tokens"]]


def test_a_hub_s_adapter_answers_as_peft_with_its_files(sources: Sources) -> None:
    answer = sources.ask(adapter_id="org/open", adapter_source="hub")
    assert ids(answer) == expected_ids(sources.served, (sources.folder / "hub" / "org/open", 1.0))
    fields = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
    told = [sources.chat(model=model, **fields, **source) for model, source in (("org/open", FROM_HUB), ("", {}))]
    assert [answer.status_code for answer in told] == [200, 200], told[0].text
    by_hub, by_base = (answer.json()["choices"][0]["message"]["content"] for answer in told)
    assert by_hub != by_base


def test_a_mix_answers_as_peft_s_own_mix(sources: Sources) -> None:
    """Ranks 4 and 3, so that the engine's largest rank of 8 cuts nothing."""
    mix: dict[str, Any] = {"ids": ["alpha", "delta"], "weights": [0.75, 1.5], "merge_strategy": "linear"}
    folder = sources.served.world.base_folder.parent
    expected = expected_ids(sources.served, (folder / "alpha", 0.75), (folder / "delta", 1.5))
    assert ids(sources.ask(merged_adapters=mix)) == expected
    assert expected != ids(sources.ask(adapter_id="alpha"))
    assert ids(sources.ask(merged_adapters=mix | {"weights": [1.0, 0.0]})) == ids(sources.ask(adapter_id="alpha"))
    even = ids(sources.ask(merged_adapters=mix | {"weights": [1, 1]}))
    assert even != expected
    assert ids(sources.ask(merged_adapters=mix | {"weights": None})) == even
    assert ids(sources.ask(merged_adapters={"ids": mix["ids"]})) == even


@pytest.mark.parametrize("strategy", ["ties", "dare_linear", "dare_ties"])
def test_other_mixes_answer_and_repeat_themselves(sources: Sources, strategy: str) -> None:
    mix = {"ids": ["alpha", "beta", "gamma"], "weights": [1, 1, 1], "merge_strategy": strategy, "density": 0.5}
    assert ids(sources.ask(merged_adapters=mix)) == ids(sources.ask("b", merged_adapters=mix))


def test_a_private_adapter_is_only_for_those_who_show_its_token(
    sources: Sources, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = {"adapter_id": "org/secret", "adapter_source": "hub"}
    assert sources.ask("a", **secret).status_code == 424
    assert sources.ask("a", **secret, api_token=TOKEN).status_code == 200
    for who, token in (("b", None), ("b", "hf_another_token_00"), ("a", None)):
        refused = sources.ask(who, **secret, api_token=token)
        assert refused.status_code == 424
        assert TOKEN not in refused.text
    mix = {"ids": ["org/secret", "org/open"], "weights": [1.0, 1.0], "merge_strategy": "linear"}
    assert sources.ask("a", merged_adapters=mix, adapter_source="hub", api_token=TOKEN).status_code == 200
    assert sources.ask("b", merged_adapters=mix, adapter_source="hub").status_code == 424
    assert TOKEN not in caplog.text
    headers = {"Authorization": f"Bearer {sources.keys['a']}"}
    assert TOKEN not in httpx.get(f"{sources.served.url}/v1/models", headers=headers).text


def test_patterns_of_a_key_hold_for_sources_and_for_each_part_of_a_mix(sources: Sources) -> None:
    assert sources.ask("narrow", adapter_id="alpha").status_code == 200
    assert sources.ask("narrow", adapter_id="org/open", adapter_source="hub").status_code == 200
    assert sources.ask("narrow", adapter_id="org/secret", adapter_source="hub", api_token=TOKEN).status_code == 424
    mix = {"ids": ["alpha", "beta"], "weights": [1.0, 1.0], "merge_strategy": "linear"}
    assert sources.ask("a", merged_adapters=mix).status_code == 200, "the mix is there now"
    refused = sources.ask("narrow", merged_adapters=mix)
    assert refused.status_code == 424
    assert "no adapter 'beta'" in refused.json()["error"]


@pytest.mark.parametrize(
    ("parameters", "status", "words"),
    [
        ({"adapter_id": "../../etc/passwd", "adapter_source": "hub"}, 422, "upwards"),
        ({"adapter_id": "org\\open", "adapter_source": "hub"}, 422, "backslash"),
        ({"adapter_id": "/org/open", "adapter_source": "hub"}, 422, "absolute"),
        ({"adapter_id": "org/none", "adapter_source": "hub"}, 424, "no such adapter for this caller"),
        ({"adapter_id": "bucket/x", "adapter_source": "s3"}, 422, "takes no adapters from 's3'"),
        ({"merged_adapters": {"ids": ["alpha"] * 9, "weights": [1] * 9}}, 422, "8 items"),
        ({"merged_adapters": {"ids": ["alpha", "nobody"], "weights": [1, 1]}}, 424, "no adapter 'nobody'"),
        ({"merged_adapters": {"ids": ["alpha"], "weights": [0.0]}}, 422, "all weights are 0"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(
    sources: Sources, parameters: dict[str, Any], status: int, words: str
) -> None:
    answer = sources.ask(**parameters)
    assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text


def test_a_server_takes_nothing_from_elsewhere_unless_it_is_told_to(tmp_path: Path) -> None:
    with served_world(tmp_path) as served:
        for source in ("hub", "s3"):
            body = {"inputs": PROMPT, "parameters": {"adapter_id": "org/open", "adapter_source": source}}
            answer = httpx.post(f"{served.url}/generate", json=body)
            assert answer.status_code == 422
            assert f"atoll serve --adapter-source {source}" in answer.json()["error"]


def test_an_adapter_in_s3_answers_as_peft_with_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    mood = save_random_adapter(tmp_path / "mood", make_model(), seed=60)
    with moto_endpoint() as endpoint:
        files = fsspec.filesystem("s3", endpoint_url=endpoint, skip_instance_cache=True, use_listings_cache=False)
        files.mkdir("models")
        for team in ("ours", "theirs"):
            files.put(str(mood), f"models/{team}/mood", recursive=True)
        settings = ServerSettings(
            remote_sources=("s3",),
            adapter_buckets=("models/ours",),
            s3_endpoint=endpoint,
            private_adapter_hosts=("127.0.0.1",),
            adapter_cache=tmp_path / "cache",
        )
        with served_world(tmp_path, settings=settings) as served:
            expected = expected_ids(served, (mood, 1.0))
            assert ids(ask_s3(served, "s3://models/ours/mood")) == expected
            assert ids(ask_s3(served, None)) != expected
            refused = ask_s3(served, "models/theirs/mood")
            assert (refused.status_code, refused.json()["error_type"]) == (424, "generation"), (
                "it is in no allowed place"
            )


def ask_s3(served: Served, adapter_id: str | None) -> httpx.Response:
    source = {"adapter_id": adapter_id, "adapter_source": "s3"} if adapter_id else {}
    body = {"inputs": PROMPT, "parameters": WANTED | source}
    return httpx.post(f"{served.url}/generate", json=body, timeout=60)
