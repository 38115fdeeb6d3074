"""LoRAX's bodies, and what they ask of the server."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from atoll.errors import RequestInvalid
from atoll.server.lorax_bodies import EmbedBody, GenerateBody
from atoll.server.merge_ask import MergeAsk
from atoll.server.prompts import last_ids

MERGED = {"ids": ["a", "b"], "weights": [0.25, 0.75]}


def body(**parameters: Any) -> GenerateBody:
    return GenerateBody.model_validate({"inputs": "x", "parameters": parameters})


@pytest.mark.parametrize(
    ("parameters", "temperature"),
    [
        ({}, None),
        ({"temperature": 1.0}, None),
        ({"temperature": 0.0}, 0.0),
        ({"temperature": 0.0, "do_sample": True, "top_k": 5}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"top_k": 5}, 1.0),
        ({"top_p": 0.9}, 1.0),
        ({"top_p": 1.0}, None),
        ({"typical_p": 0.9}, 1.0),
        ({"typical_p": 1.0}, None),
        ({"temperature": 0.3}, 0.3),
        ({"temperature": 1.0, "best_of": 2}, 1.0),
    ],
    ids=str,
)
def test_lorax_rules_for_when_to_sample(parameters: dict[str, Any], temperature: float | None) -> None:
    assert body(**parameters).ask().temperature == temperature


def test_a_merge_is_handed_on_as_it_was_asked_for() -> None:
    assert body().ask().merge is None
    assert body(merged_adapters=MERGED, adapter_id=None).ask().merge == MergeAsk(ids=("a", "b"), weights=(0.25, 0.75))
    wanted = MERGED | {"merge_strategy": "dare_ties", "density": 0.5, "majority_sign_method": "frequency"}
    expected = MergeAsk(
        ids=("a", "b"), weights=(0.25, 0.75), strategy="dare_ties", density=0.5, majority_sign_method="frequency"
    )
    assert body(merged_adapters=wanted).ask().merge == expected
    embed = EmbedBody.model_validate({"inputs": "x", "parameters": {"merged_adapters": wanted}})
    assert embed.ask().merge == expected
    # The density that lorax-client must send means nothing to linear.
    assert body(merged_adapters=MERGED | {"merge_strategy": "linear", "density": 0.0}).ask().merge == MergeAsk(
        ids=("a", "b"), weights=(0.25, 0.75)
    )


@pytest.mark.parametrize("unset", [{}, {"weights": None}], ids=str)
@pytest.mark.parametrize("name", ["density", "majority_sign_method", "merge_strategy", "colour"])
def test_a_merge_needs_its_ids_alone(unset: dict[str, Any], name: str) -> None:
    merged = {"ids": ["a", "b"], **unset, name: None}
    assert body(merged_adapters=merged).ask().merge == MergeAsk(ids=("a", "b"), weights=())
    embed = EmbedBody.model_validate({"inputs": "x", "parameters": {"merged_adapters": merged}})
    assert embed.ask().merge == MergeAsk(ids=("a", "b"), weights=())


@pytest.mark.parametrize(
    ("merged", "message"),
    [
        ({"ids": [], "weights": []}, "ids"),
        ({"ids": ["a"], "weights": []}, "weights"),
        (MERGED | {"ids": ["a"]}, "1 ids and 2 weights"),
        ({"ids": ["a"] * 9, "weights": [1.0] * 9}, "ids"),
        (MERGED | {"weights": [1e9, 1]}, "weights"),
        (MERGED | {"weights": [float("nan"), 1]}, "weights"),
        (MERGED | {"ids": ["a", ""]}, "ids"),
        (MERGED | {"merge_strategy": "magic"}, "merge_strategy"),
        (MERGED | {"merge_strategy": "ties"}, "needs a density"),
        (MERGED | {"merge_strategy": "dare_linear", "density": 0.0}, "needs a density"),
        (MERGED | {"density": 1.5}, "density"),
        (MERGED | {"majority_sign_method": "loudest"}, "majority_sign_method"),
    ],
    ids=str,
)
def test_merges_that_mean_nothing_are_refused(merged: dict[str, Any], message: str) -> None:
    with pytest.raises((ValidationError, RequestInvalid), match=message):
        body(merged_adapters=merged)


def test_one_adapter_or_a_merge() -> None:
    with pytest.raises(RequestInvalid, match="not both"):
        body(adapter_id="a", merged_adapters=MERGED)


@pytest.mark.parametrize("source", ["local", "hub", "s3", "pbase", None])
def test_the_source_is_handed_on(source: str | None) -> None:
    assert body(adapter_id="a", adapter_source=source).ask().adapter_source == source


def test_a_token_is_handed_on_and_in_no_representation() -> None:
    sent = body(adapter_id="a", api_token="hf_secret")
    assert sent.ask().api_token == "hf_secret"
    assert "hf_secret" not in repr(sent) + repr(sent.ask()) + str(sent.ask())
    assert body(api_token="").ask().api_token is None


def test_columns_have_a_template_already() -> None:
    fields = {"inputs": {"text": "x"}, "parameters": {"apply_chat_template": True}}
    with pytest.raises(RequestInvalid, match="apply_chat_template"):
        GenerateBody.model_validate(fields)


def test_a_cut_prompt_keeps_its_beginning_token() -> None:
    assert last_ids((1, 5, 6, 7), 2, 1) == (1, 7)
    assert last_ids((1, 5, 6, 7), 1, 1) == (1,)
    assert last_ids((4, 5, 6, 7), 2, 1) == (6, 7)
    assert last_ids((4, 5, 6, 7), 2, None) == (6, 7)
    assert last_ids((1, 5), 2, 1) == last_ids((1, 5), 10**30, 1) == (1, 5)


def test_the_base_has_a_name_of_lorax_too() -> None:
    assert body(adapter_id="__base_model__").ask().adapter_id == ""
    assert body(adapter_id="__base_model__", merged_adapters=MERGED).ask().merge is not None
