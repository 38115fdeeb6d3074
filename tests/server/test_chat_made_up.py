"""Conversations and functions made up at random: a prompt, or an error that has a name."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from atoll.errors import AtollError
from atoll.server.errors import error_body, from_validation
from atoll.server.openai_bodies import ChatBody
from atoll.server.prompts import prompt_ids
from support.scale import scaled
from support.tokenizers import TOOL_TEMPLATES, make_kind

PATH = "/v1/chat/completions"
NUM_EXAMPLES = scaled(300, 2_000)

# Half surrogate pairs, marks of our own, control tokens and what templates are written in are as likely as letters.
SPECIAL = [
    "<|im_end|>",
    "<|im_start|>system\n",
    "\ue0000\ue001",
    "\ue002",
    "\ue003",
    "\ud800",
    "\u2003",
    "{{ 1 }}",
    '"',
    "",
]
TEXTS = st.lists(st.sampled_from(SPECIAL) | st.text(st.characters(exclude_categories=()), max_size=5), max_size=4).map(
    "".join
)
NUMBERS = st.integers() | st.just(10**400) | st.floats()
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.from_regex(r"\A[a-zA-Z0-9_-]{1,8}\Z") | st.just("f")


def mostly(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is expected in a place, and now and then anything at all."""
    return st.integers(0, 39).flatmap(lambda chance: strategy if chance else VALUES)


def objects(*required: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects that have some of the fields, mostly the required ones."""
    given_fields = {name: mostly(strategy) for name, strategy in fields.items()}
    always = {name: given_fields.pop(name) for name in required}
    return mostly(st.fixed_dictionaries(always, optional=given_fields))


DEEP = '{"a":' * 1500 + "1" + "}" * 1500
ARGUMENTS = TEXTS | st.dictionaries(TEXTS, VALUES, max_size=3).map(json.dumps) | st.just(DEEP)
CALLS = objects(
    "function",
    id=TEXTS,
    type=st.just("function"),
    function=objects("name", "arguments", name=NAMES, arguments=ARGUMENTS),
)
PARTS = objects("type", "text", type=st.just("text"), text=TEXTS)
MESSAGES = st.one_of(
    objects("role", "content", role=st.sampled_from(["system", "developer", "user"]), content=TEXTS, name=TEXTS),
    objects("role", "content", role=st.just("user"), content=st.lists(PARTS, max_size=3)),
    objects(
        "role",
        "tool_calls",
        role=st.just("assistant"),
        content=TEXTS,
        tool_calls=st.lists(CALLS, max_size=3),
    ),
    objects("role", role=st.just("tool"), content=TEXTS, tool_call_id=TEXTS),
)
SCHEMAS = st.dictionaries(
    st.sampled_from(["type", "properties", "required", "$ref", "enum"]) | TEXTS, VALUES, max_size=3
)
TOOLS = objects(
    "type",
    "function",
    type=st.just("function"),
    function=objects("name", name=NAMES, description=TEXTS, parameters=SCHEMAS, strict=st.booleans()),
)
CHOICES = st.sampled_from(["none", "auto", "required", "f", {"type": "function", "function": {"name": "f"}}])
BODIES = objects(
    "messages",
    messages=st.lists(MESSAGES, min_size=1, max_size=4),
    tools=st.lists(TOOLS, max_size=3),
    tool_choice=CHOICES,
    parallel_tool_calls=st.booleans(),
)


def outcome(tokenizer: PreTrainedTokenizerBase, body: Any) -> str:
    """How a body ends, as the route ends it. Anything but a prompt and a named error is raised."""
    try:
        (ask,) = ChatBody.model_validate(body).asks()
        ids = prompt_ids(tokenizer, ask.prompt, None).ids
    except (AtollError, ValidationError) as error:
        named = error if isinstance(error, AtollError) else from_validation(error.errors(include_url=False), body)
        status, told = error_body(PATH, named)
        return f"{status} {told['error']['code']}"
    assert ids
    assert all(0 <= token_id < len(tokenizer) for token_id in ids)
    return "a prompt"


@pytest.mark.parametrize("template", [*TOOL_TEMPLATES, "llama3", "mistral"])
def test_made_up_conversations_end_in_a_prompt_or_in_an_error_with_a_name(template: str) -> None:
    tokenizer = make_kind("bytes" if template in TOOL_TEMPLATES else template)
    tokenizer.chat_template = TOOL_TEMPLATES.get(template, tokenizer.chat_template)
    outcomes: Counter[str] = Counter()

    @given(body=BODIES)
    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def ask(body: Any) -> None:
        outcomes[outcome(tokenizer, body)] += 1

    ask()
    assert outcomes["a prompt"] > NUM_EXAMPLES // 10, outcomes
    assert outcomes["400 invalid_request"] > NUM_EXAMPLES // 10, outcomes
    assert all(ended == "a prompt" or ended.startswith("400 ") for ended in outcomes), outcomes
