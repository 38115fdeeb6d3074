"""The promises of training several adapters at once, each against a slow reference."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atoll.config.fleet import LoraConfig, TrainerConfig
from atoll.model.load import BaseModel
from atoll.training.checkpoint import latest_checkpoint, load_checkpoint
from atoll.training.data import PassMixer, TokenizedExample, TokenizedSplit
from atoll.training.optim import learning_rate_at
from atoll.training.trainer import PassTime, Trainer, TrainingJob
from support.tiny import make_model, make_tokenizer

# fp32 sums taken in another order: Adam divides by the root of tiny second moments, which magnifies it.
TOLERANCE = 2e-4


def tiny_base(architecture: str = "llama") -> BaseModel:
    model = make_model(architecture)
    model.set_attn_implementation("atoll")
    model.requires_grad_(False)
    return BaseModel(
        name="tiny", digest="sha256:0", folder=Path(), model=model, tokenizer=make_tokenizer(),
        device=torch.device("cpu"), dtype=torch.float32, num_params=1, end_ids=frozenset({2}), max_length=512,
        kv_shapes=(),
    )  # fmt: skip


def random_split(seed: int, size: int) -> TokenizedSplit:
    """Prompts that begin with the same tokens, as those of a task do; with some seeds none."""
    rng = random.Random(seed)
    instruction = tuple(range(10, 10 + seed % 4 * 3))
    examples = []
    for _ in range(size):
        prompt, completion = rng.randint(1, 30), rng.randint(1, 8)
        own = tuple(rng.randint(3, 400) for _ in range(prompt + completion))
        examples.append(TokenizedExample(instruction + own, len(instruction) + prompt))
    return TokenizedSplit(tuple(examples))


def job(name: str, seed: int, *, size: int = 21, adapter: LoraConfig | None = None, **trainer: Any) -> TrainingJob:
    fields: dict[str, Any] = {"epochs": 2, "effective_batch_size": 5, "seed": seed} | trainer
    return TrainingJob(
        name,
        adapter or LoraConfig(r=4),
        TrainerConfig(**fields),
        3e-3,
        random_split(seed, size),
        random_split(seed + 99, 6),
    )


JOBS = [
    job("a", 1),
    job("b", 2, size=9, adapter=LoraConfig(r=2, target_modules=("q_proj", "down_proj")), epochs=3, max_grad_norm=0.1),
    job("c", 3, size=30, adapter=LoraConfig(r=7, alpha=3, use_rslora=True), early_stop=1, evaluations_per_epoch=3),
]


def run(jobs: list[TrainingJob], token_budget: int = 120, **options: Any) -> dict[str, list[Tensor]]:
    trainer = Trainer(tiny_base(), jobs, TrainerConfig(token_budget=token_budget), **options)
    assert trainer.train()
    trainer.finish()
    return {r.job.name: [p.detach().clone() for p in r.optimizer.parameters] for r in trainer.runs}


@pytest.mark.parametrize("token_budget", [40, 150, 4000])
def test_together_equals_alone(token_budget: int) -> None:
    together = run(JOBS, token_budget)
    for single in JOBS:
        alone = run([single], 333)[single.name]
        for ours, theirs in zip(together[single.name], alone, strict=True):
            torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=1e-3)


def test_alone_equals_peft_with_a_plain_adamw_loop() -> None:
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    single = job("a", 5, early_stop=None)
    single = TrainingJob(single.name, single.adapter, single.trainer, single.learning_rate, single.train, None)
    trainer = Trainer(tiny_base(), [single], TrainerConfig(token_budget=100))
    run_ = trainer.runs[0]
    peft_model = get_peft_model(
        make_model(), PeftLoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    parameters = dict(peft_model.named_parameters())
    pairs = {
        name: (
            parameters[f"base_model.model.{name}.lora_A.default.weight"],
            parameters[f"base_model.model.{name}.lora_B.default.weight"],
        )
        for name in run_.weights
    }
    with torch.no_grad():
        for name, (a, b) in pairs.items():
            a.copy_(run_.weights[name].a)
            b.copy_(run_.weights[name].b)
    trainable = [p for pair in pairs.values() for p in pair]
    adamw = torch.optim.AdamW(trainable, lr=single.learning_rate, weight_decay=0.0)
    for step in range(run_.total_steps):
        examples = [single.train.examples[i] for i in run_.order.step_indices(step)]
        loss = torch.zeros(())
        for example in examples:
            logits = peft_model(input_ids=torch.tensor([example.ids])).logits[0]
            rows = logits[example.num_prompt_tokens - 1 : -1]
            targets = torch.tensor(example.ids[example.num_prompt_tokens :])
            loss = loss + torch.nn.functional.cross_entropy(rows, targets, reduction="sum")
        (loss / sum(e.num_targets for e in examples)).backward()
        torch.nn.utils.clip_grad_norm_(trainable, single.trainer.max_grad_norm)
        adamw.param_groups[0]["lr"] = learning_rate_at(step, run_.total_steps, single.trainer, single.learning_rate)
        adamw.step()
        adamw.zero_grad()
    trainer.train()
    for name, (a, b) in pairs.items():
        torch.testing.assert_close(run_.weights[name].a, a, atol=TOLERANCE, rtol=1e-3)
        torch.testing.assert_close(run_.weights[name].b, b, atol=TOLERANCE, rtol=1e-3)


def test_examples_in_one_pass_do_not_see_each_other() -> None:
    from atoll.training.loss import pack, validation_pass

    trainer = Trainer(tiny_base(), [job("a", 1)], TrainerConfig())
    examples = list(random_split(7, 6).examples)
    device = torch.device("cpu")
    together = validation_pass(trainer._base.model, trainer.bank, pack({0: examples}, device))[0]
    alone = sum(validation_pass(trainer._base.model, trainer.bank, pack({0: [e]}, device))[0] for e in examples)
    assert together == pytest.approx(alone, rel=1e-5)


def test_what_all_prompts_begin_with_is_computed_once() -> None:
    from atoll.training.loss import pack

    first, second = random_split(7, 6), random_split(8, 5)
    assert (first.num_shared, second.num_shared) == (9, 0)
    packed = pack({0: first.examples, 1: second.examples}, torch.device("cpu"))
    assert (
        packed.ids.shape[1]
        == sum(first.lengths(range(6))) + second.num_tokens
        == first.num_tokens - 5 * 9 + second.num_tokens
    )


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("seed", [1, 5, 9])
def test_a_run_resumed_after_every_pass_ends_in_the_same_bits(tmp_path: Path, seed: int, dropout: float) -> None:
    clipped = {"max_grad_norm": 0.05}  # in every step, so that a gradient's norm goes into every weight
    jobs = [
        job("a", seed, adapter=LoraConfig(r=2, dropout=dropout, target_modules=("q_proj", "v_proj")), **clipped),
        job("b", seed + 1, size=11, adapter=LoraConfig(r=5), **clipped),
    ]
    config = TrainerConfig(token_budget=150)
    whole = Trainer(tiny_base(), jobs, config)
    assert whole.train()
    stops = list[int]()

    def stop_at_once(_: PassTime) -> None:
        stops.append(part.num_passes)
        part.request_stop()

    part = Trainer(tiny_base(), jobs, config, run_folder=tmp_path, on_pass=stop_at_once)
    while not part.train():
        part = Trainer(tiny_base(), jobs, config, run_folder=tmp_path, on_pass=stop_at_once)
        checkpoint = latest_checkpoint(tmp_path)
        assert checkpoint is not None
        part.restore(*load_checkpoint(checkpoint))
    assert stops == list(range(1, whole.num_passes + 1))
    assert len(stops) > 10
    assert part.state()["adapters"] == whole.state()["adapters"]
    tensors = whole.tensors()
    for name, group in part.tensors().items():
        assert group.keys() == tensors[name].keys()
        for key, value in group.items():
            assert torch.equal(value, tensors[name][key]), f"{name}: {key}"


def test_gradient_checkpointing_changes_nothing() -> None:
    plain = run(JOBS[:2])
    trainer = Trainer(tiny_base(), JOBS[:2], TrainerConfig(token_budget=120, gradient_checkpointing=True))
    assert trainer.train()
    trainer.finish()
    for run_ in trainer.runs:
        for ours, theirs in zip(run_.optimizer.parameters, plain[run_.job.name], strict=True):
            torch.testing.assert_close(ours.detach(), theirs, atol=TOLERANCE, rtol=1e-3)


def test_only_the_own_slot_is_trained() -> None:
    trainer = Trainer(tiny_base(), JOBS[:2], TrainerConfig(token_budget=120))
    base_before = {name: p.clone() for name, p in trainer._base.model.named_parameters() if "slab" not in name}
    assert trainer.train()
    for name, parameter in trainer._base.model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, base_before[name])
    layer = trainer.bank.layers["model.layers.0.self_attn.k_proj"]  # a targets it with rank 4, b does not
    assert set(layer.weights) == {0}
    a_slab, _ = layer._slabs or (torch.empty(0), torch.empty(0))
    assert a_slab[1].abs().sum() == 0


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=40), min_size=1, max_size=5),
    budget=st.integers(50, 1000),
)
def test_the_mixer_keeps_to_the_budget_and_starves_nobody(lengths: list[list[int]], budget: int) -> None:
    queues = {f"t{i}": list(queue) for i, queue in enumerate(lengths)}
    mixer = PassMixer({name: float(sum(queue)) for name, queue in queues.items()}, budget)
    total = sum(map(sum, lengths))
    waited = dict.fromkeys(queues, 0)
    while active := {name: queue for name, queue in queues.items() if queue}:
        taken = mixer.take(active)
        assert taken, "a pass must take something"
        tokens = sum(sum(queues[name][:count]) for name, count in taken.items())
        assert tokens <= budget or sum(taken.values()) == 1
        for name in active:
            waited[name] = 0 if name in taken else waited[name] + 1
            assert waited[name] <= total // 50 + len(queues)
        for name, count in taken.items():
            del queues[name][:count]


def test_the_schedule_warms_up_and_falls_to_zero() -> None:
    config = TrainerConfig(warmup_fraction=0.1)
    rates = [learning_rate_at(step, 100, config, 1.0) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[-1] < 0.001
