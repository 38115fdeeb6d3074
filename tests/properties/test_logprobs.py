"""The log-probability that the engine reports for a token is the one that training would see for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from atoll.adapters.bank import AdapterBank
from atoll.adapters.peft_io import read_adapter
from atoll.engine import Completion, Request, SamplingParams
from atoll.model.load import load_base
from atoll.training.data import TokenizedExample
from atoll.training.loss import pack, validation_pass
from support.engines import ADAPTERS, World, make_prompt, make_world, one_torch_thread

NUM_TOKENS = 8
SAMPLINGS = [
    SamplingParams(max_new_tokens=NUM_TOKENS, ignore_eos=True),
    SamplingParams(max_new_tokens=NUM_TOKENS, ignore_eos=True, temperature=1.7, top_p=0.9, seed=5),
    SamplingParams(
        max_new_tokens=NUM_TOKENS, ignore_eos=True, temperature=0.6, seed=6, repetition_penalty=1.4,
        presence_penalty=1.0, logit_bias=((7, 3.0),),
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with one_torch_thread():
        yield make_world(tmp_path_factory.mktemp("world"))


def trained_logprobs(world: World, answers: dict[str, tuple[tuple[int, ...], Completion]]) -> dict[str, list[float]]:
    """Adapter -> the log-probability of each of its tokens, by the trainer's loss, all adapters in one pass."""
    base = load_base(str(world.base_folder), device="cpu", dtype="float32")
    bank = AdapterBank(base.model, num_slots=len(answers), max_rank=8)
    for slot, name in enumerate(answers):
        bank.load(slot, read_adapter(Path(world.adapters[name].folder)))
    logprobs: dict[str, list[float]] = {name: [] for name in answers}
    for num_tokens in range(1, NUM_TOKENS + 1):
        examples = {}
        for slot, (prompt, completion) in enumerate(answers.values()):
            ids = prompt + completion.token_ids[:num_tokens]
            examples[slot] = [TokenizedExample(ids, len(ids) - 1)]
        losses = validation_pass(base.model, bank, pack(examples, torch.device("cpu")))
        for slot, name in enumerate(answers):
            logprobs[name].append(-losses[slot])
    return logprobs


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "penalised"])
def test_the_engines_logprobs_equal_the_trainers(world: World, sampling: SamplingParams) -> None:
    prompts = {name: make_prompt(seed, 5 + 4 * seed) for seed, name in enumerate(ADAPTERS)}
    requests = [Request(prompt_ids=prompts[name], sampling=sampling, adapter=world.adapters[name]) for name in prompts]
    engine = world.engine(max_batch_tokens=16)
    completions = engine.generate(requests)
    engine.close()
    answers = {name: (prompts[name], completion) for name, completion in zip(prompts, completions, strict=True)}
    expected = trained_logprobs(world, answers)
    for name, (_, completion) in answers.items():
        assert [token.logprob for token in completion.tokens] == pytest.approx(expected[name], abs=2e-4)


def test_penalties_change_the_tokens(world: World) -> None:
    """The property above would be hollow for penalties that do nothing."""
    prompt = make_prompt(3, 12)
    penalised = SamplingParams(max_new_tokens=NUM_TOKENS, ignore_eos=True, frequency_penalty=2.0, presence_penalty=2.0)
    engine = world.engine(max_batch_tokens=16)
    plain, other = engine.generate([Request(prompt_ids=prompt, sampling=s) for s in (SAMPLINGS[0], penalised)])
    engine.close()
    assert plain.token_ids != other.token_ids
    assert len(set(other.token_ids)) >= len(set(plain.token_ids))
