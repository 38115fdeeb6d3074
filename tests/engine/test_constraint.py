"""Completions that follow a grammar."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.engine import Completion, Engine, Request
from atoll.errors import RequestInvalid
from atoll.text.constraint import MAX_SCHEMA_DEPTH, ConstraintCompiler, TokenConstraint
from support.engines import World, greedy_request, make_prompt
from support.scale import scaled

MANY = scaled(200, 5_000)
KEYWORDS = st.sampled_from(
    [
        "type",
        "properties",
        "items",
        "enum",
        "const",
        "anyOf",
        "allOf",
        "oneOf",
        "$ref",
        "$defs",
        "pattern",
        "format",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "required",
        "additionalProperties",
        "prefixItems",
        "not",
    ]
)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["a", "b"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler(world: World) -> ConstraintCompiler:
    base = world.engine().base
    return ConstraintCompiler(base.tokenizer, base.end_ids)


def ask(constraint: TokenConstraint, seed: int = 0, *, temperature: float = 1.0, **changes: Any) -> Request:
    request = greedy_request(make_prompt(seed, 9), 200)
    sampling = replace(request.sampling, temperature=temperature, seed=seed, ignore_eos=seed % 2 == 0)
    return replace(request, sampling=sampling, constraint=constraint, **changes)


def is_person(completion: Completion) -> bool:
    assert completion.finish is not None, completion.error
    person = json.loads(completion.text)
    return set(person) == {"name", "age", "kind"} and person["kind"] in "ab" and 0 <= person["age"] <= 150


def test_every_adapter_and_the_base_keep_to_the_schema_in_one_batch(
    world: World, engine: Engine, compiler: ConstraintCompiler
) -> None:
    schema = compiler.json_schema(PERSON)
    adapters = [None, *world.adapters.values()]
    requests = [ask(schema.copy(), seed, adapter=adapters[seed % len(adapters)]) for seed in range(15)]
    for completion in engine.generate(requests):
        assert is_person(completion)
        assert completion.finish is not None
        assert (completion.finish.finish_reason, completion.finish.stop_reason) == ("stop", "eos")


def test_neighbours_without_a_grammar_are_not_touched(
    world: World, engine: Engine, compiler: ConstraintCompiler
) -> None:
    prompt = make_prompt(1, 9)
    constrained = ask(compiler.regex("[0-9]{12}"), temperature=0)
    first, second = engine.generate([constrained, greedy_request(prompt, 16)])
    assert re.fullmatch("[0-9]{12}", first.text)
    assert second.token_ids == world.reference(None, prompt)


def test_the_answer_is_the_same_after_a_preemption(world: World, compiler: ConstraintCompiler) -> None:
    schema = compiler.json_schema(PERSON)
    with world.engine() as roomy:
        expected = [c.text for c in roomy.generate([ask(schema.copy(), seed) for seed in range(12)])]
    with world.engine(num_blocks=28, block_size=8) as tight:
        got = [c.text for c in tight.generate([ask(schema.copy(), seed) for seed in range(12)])]
        assert tight.stats().num_preemptions
    assert got == expected


def test_no_model_can_write_spaces_for_ever(engine: Engine, compiler: ConstraintCompiler) -> None:
    schema = compiler.json_schema(PERSON)
    for seed in range(8):
        (completion,) = engine.generate([ask(schema.copy(), seed, temperature=0)])
        assert is_person(completion)


def test_a_stop_string_cuts_structured_text_too(engine: Engine, compiler: ConstraintCompiler) -> None:
    request = ask(compiler.regex("aaa,bbb"), temperature=0)
    (completion,) = engine.generate([replace(request, sampling=replace(request.sampling, stop=(",",)))])
    assert completion.text == "aaa"
    assert completion.finish is not None
    assert completion.finish.stop_reason == "stop_string"


def test_log_probabilities_stay_the_models_own(engine: Engine, compiler: ConstraintCompiler) -> None:
    (completion,) = engine.generate([ask(compiler.regex("[0-9]{4}"), temperature=0)])
    assert all(token.logprob < 0 for token in completion.tokens)
    assert sum(token.logprob for token in completion.tokens) < -10


@pytest.mark.parametrize(
    "schema", [{"type": "nonsense"}, {"$ref": "http://example.com/x"}, {"type": "string", "pattern": "("}]
)
def test_a_wrong_schema_is_refused(compiler: ConstraintCompiler, schema: dict[str, Any]) -> None:
    with pytest.raises(RequestInvalid):
        compiler.json_schema(schema)


def test_what_is_too_large_or_too_deep_is_refused(compiler: ConstraintCompiler) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(MAX_SCHEMA_DEPTH):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestInvalid, match="deeper"):
        compiler.json_schema(schema)
    with pytest.raises(RequestInvalid, match="characters"):
        compiler.json_schema({"enum": ["x" * 70_000]})
    with pytest.raises(RequestInvalid, match="characters"):
        compiler.regex("a" * 70_000)


def test_a_grammar_that_fails_in_the_middle_harms_its_own_request_only(
    world: World, engine: Engine, compiler: ConstraintCompiler
) -> None:
    class Failing(TokenConstraint):
        def push(self, token_id: int) -> None:
            raise RequestInvalid("too costly")

    prompt = make_prompt(1, 9)
    broken, fine = engine.generate([ask(Failing(compiler.regex("a*")._matcher)), greedy_request(prompt, 16)])
    assert isinstance(broken.error, RequestInvalid)
    assert fine.token_ids == world.reference(None, prompt)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS | st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@given(schema=st.dictionaries(KEYWORDS | st.text(max_size=6), json_values, max_size=6))
@settings(max_examples=MANY, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_schema_gives_a_constraint_or_a_refusal(compiler: ConstraintCompiler, schema: dict[str, Any]) -> None:
    try:
        constraint = compiler.json_schema(schema)
    except RequestInvalid:
        return
    assert constraint.allowed(512).any()


@given(pattern=st.text(alphabet="ab01.*+?|()[]{}^$\\\\,-dws", max_size=24))
@settings(max_examples=MANY, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_pattern_gives_a_constraint_or_a_refusal(compiler: ConstraintCompiler, pattern: str) -> None:
    try:
        constraint = compiler.regex(pattern)
    except RequestInvalid:
        return
    constraint.allowed(512)
