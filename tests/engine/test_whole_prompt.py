"""Embeddings and log-probabilities of prompts, held against transformers and PEFT."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from atoll.engine import Engine, Request
from atoll.engine.request import PromptToken
from support.engines import World, greedy_request, make_prompt

NAMES = (None, "alpha", "delta")


def reference(world: World, name: str | None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(world.base_folder, dtype=torch.float32).eval()
    return model if name is None else PeftModel.from_pretrained(model, world.adapters[name].folder).eval()


def embed(world: World, prompt: tuple[int, ...], name: str | None) -> Request:
    return replace(greedy_request(prompt, 1, world.adapters[name] if name else None), embed=True)


@torch.no_grad()
def hidden(model: Any, prompt: tuple[int, ...]) -> Tensor:
    output = model(input_ids=torch.tensor([prompt]), output_hidden_states=True)
    return output.hidden_states[-1][0].mean(0)


@pytest.mark.parametrize("name", NAMES)
def test_an_embedding_is_the_mean_of_the_last_hidden_states(world: World, engine: Engine, name: str | None) -> None:
    prompts = [make_prompt(seed, length) for seed, length in enumerate((1, 9, 80))]  # 80: in three chunks
    model = reference(world, name)
    others = [greedy_request(make_prompt(7, 9), 16), greedy_request(prompts[1], 4)]
    completions = engine.generate([embed(world, prompt, name) for prompt in prompts] + others)
    for prompt, completion in zip(prompts, completions[:3], strict=True):
        assert completion.finish is not None
        assert completion.token_ids == ()
        torch.testing.assert_close(
            torch.tensor(completion.finish.embedding), hidden(model, prompt), rtol=1e-4, atol=1e-5
        )
    assert completions[3].token_ids == world.reference(None, make_prompt(7, 9))


def test_an_embedding_does_not_depend_on_the_prefix_cache(world: World, engine: Engine) -> None:
    prompt = make_prompt(3, 60)
    engine.generate([greedy_request(prompt, 2)])
    (completion,) = engine.generate([embed(world, prompt, None)])
    assert completion.finish is not None
    assert completion.finish.num_cached_tokens == 0
    torch.testing.assert_close(
        torch.tensor(completion.finish.embedding), hidden(reference(world, None), prompt), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_of_a_prompt(world: World, engine: Engine, name: str | None) -> None:
    prompt = make_prompt(4, 75)
    adapter = world.adapters[name] if name else None
    request = replace(greedy_request(prompt, 3, adapter), prompt_logprobs=2)
    with torch.no_grad():
        expected = reference(world, name)(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
    engine.generate([greedy_request(prompt, 1, adapter)])  # its blocks are cached now
    completions = engine.generate([greedy_request(make_prompt(5, 9), 5), request, replace(request, request_id="b")])
    for completion in completions[1:]:
        assert completion.finish is not None
        tokens = completion.finish.prompt_tokens
        assert tuple(token.token_id for token in tokens) == prompt
        assert tokens[0].logprob is None
        for place, token in enumerate(tokens[1:]):
            assert token.logprob == pytest.approx(float(expected[place, token.token_id]), abs=1e-4)
            best = expected[place].topk(2)
            assert [token_id for token_id, _ in token.top] == best.indices.tolist()
        assert completion.token_ids == world.reference(name, prompt)[:3]


def test_a_prompt_of_one_token_has_no_log_probability(engine: Engine) -> None:
    request = replace(greedy_request((5,), 3), prompt_logprobs=2)
    for completion in engine.generate([request, replace(request, request_id="again")]):
        assert completion.finish is not None
        assert completion.finish.prompt_tokens == (PromptToken(5, None),)
        assert len(completion.token_ids) == 3


def test_a_preempted_request_tells_of_each_token_once(world: World) -> None:
    prompts = [make_prompt(seed, 40) for seed in range(4)]
    with world.engine(num_blocks=24, block_size=8, max_batch_tokens=32) as engine:
        requests = [replace(greedy_request(prompt, 30), prompt_logprobs=0) for prompt in prompts]
        completions = engine.generate(requests)
        assert engine.stats().num_preemptions
    for prompt, completion in zip(prompts, completions, strict=True):
        assert completion.finish is not None
        assert tuple(token.token_id for token in completion.finish.prompt_tokens) == prompt
