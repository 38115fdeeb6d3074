"""Adapters from a hub and mixes over HTTP: who may use what, and what the answers are."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from support.engines import greedy
from support.hubs import TOKEN, FakeHub, fake_hub
from support.servers import Served, served_world
from support.tiny import make_model

PROMPT = "Is it?"


@dataclass
class Sources:
    """A server with keys that takes adapters from a hub. keys: by who holds them."""

    served: Served
    hub: FakeHub
    keys: dict[str, str]
    folder: Path

    def ask(self, who: str = "a", **parameters: Any) -> httpx.Response:
        wanted = {"max_new_tokens": 8, "ignore_eos_token": True, "details": True} | parameters
        headers = {"Authorization": f"Bearer {self.keys[who]}"}
        body = {"inputs": PROMPT, "parameters": wanted}
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


def expected_ids(sources: Sources, *weighted: tuple[Path, float]) -> list[int]:
    """PEFT's own greedy answer under a weighted sum of adapters, made by its svd on the products."""
    base = AutoModelForCausalLM.from_pretrained(sources.served.world.base_folder, dtype=torch.float32).eval()
    model = PeftModel.from_pretrained(base, weighted[0][0], adapter_name="0")
    for number, (folder, _) in enumerate(weighted[1:], start=1):
        model.load_adapter(folder, adapter_name=str(number))
    names, weights = [str(number) for number in range(len(weighted))], [weight for _, weight in weighted]
    model.add_weighted_adapter(names, weights, "mix", "svd", svd_rank=64, svd_full_matrices=False)
    model.set_adapter("mix")
    prompt = tuple(encode_text(sources.served.engine.base.tokenizer, PROMPT))
    return list(greedy(model.eval(), prompt, 8))


def ids(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [token["id"] for token in answer.json()["details"]["tokens"]]


def test_a_hub_s_adapter_answers_as_peft_with_its_files(sources: Sources) -> None:
    answer = sources.ask(adapter_id="org/open", adapter_source="hub")
    assert ids(answer) == expected_ids(sources, (sources.folder / "hub" / "org/open", 1.0))
    assert sources.chat(model="org/open", adapter_source="hub").status_code in (200, 400), "or the dialect has no hub"


def test_a_mix_answers_as_peft_s_own_mix(sources: Sources) -> None:
    """Ranks 4 and 3, so that the engine's largest rank of 8 cuts nothing."""
    mix = {"ids": ["alpha", "delta"], "weights": [0.75, 1.5], "merge_strategy": "linear"}
    folder = sources.served.world.base_folder.parent
    expected = expected_ids(sources, (folder / "alpha", 0.75), (folder / "delta", 1.5))
    assert ids(sources.ask(merged_adapters=mix)) == expected
    assert expected != ids(sources.ask(adapter_id="alpha"))
    assert ids(sources.ask(merged_adapters=mix | {"weights": [1.0, 0.0]})) == ids(sources.ask(adapter_id="alpha"))


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
