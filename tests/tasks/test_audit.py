"""The audit finds what was put into the data, and the estimate agrees with the layers that training makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from atoll.adapters.bank import AdapterBank
from atoll.config.fleet import DataConfig, FleetConfig, LoraConfig
from atoll.config.task import TaskConfig
from atoll.errors import ConfigError, DataError
from atoll.tasks.audit import TaskAudit, audit_task, histogram, mask_problems, x_ray
from atoll.tasks.dataset import Example
from atoll.tasks.estimate import base_shape, estimate_fleet, estimate_member, measure_speed, num_adapter_params
from atoll.text.prompt import PromptRenderer, RenderedExample
from atoll.text.tokenizer import end_ids
from support.tiny import make_model, make_tokenizer

TOKENIZER = make_tokenizer()


def make_task(**fields: Any) -> TaskConfig:
    return TaskConfig.model_validate(
        {
            "name": "mood",
            "dataset": {"train": "unused.csv"},
            "prompt": {"template": "Text: {text}"},
            "target_column": "label",
            "metrics": ["accuracy"],
        }
        | fields
    )


def examples(*rows: tuple[str, str]) -> list[Example]:
    return [Example(f"{text}/{label}", {"text": text, "label": label}) for text, label in rows]


def audit(splits: dict[Any, list[Example]], data: DataConfig | None = None, **fields: Any) -> TaskAudit:
    return audit_task(
        make_task(**fields),
        TOKENIZER,
        splits,
        data=data or DataConfig(),
        end_ids=end_ids(TOKENIZER),
        model_max_length=512,
    )


def plain(number: int, label: str = "good") -> list[Example]:
    return examples(*((f"text {index}", label) for index in range(number)))


def test_clean_data_have_no_findings() -> None:
    train = examples(*((f"text {index}", ("good", "bad")[index % 2]) for index in range(20)))
    test = examples(*((f"other {index}", "good") for index in range(5)))
    found = audit({"train": train, "validation": test, "test": test}, labels=["good", "bad"])
    assert found.problems == ()
    assert found.warnings == ()
    assert found.labels == {"good": 10, "bad": 10}
    assert [(split.num_rows, split.num_duplicates, split.num_leaked) for split in found.splits] == [
        (20, 0, 0),
        (5, 0, 0),
        (5, 0, 0),
    ]


def test_duplicates_contradictions_and_leaks() -> None:
    train = examples(("a b", "good"), ("a b", "good"), ("A  b ", "bad"), ("c", "good"))
    found = audit({"train": train, "test": examples(("a\nB", "bad"), ("d", "bad"))})
    assert [split.num_duplicates for split in found.splits] == [1, 0]
    assert [split.num_contradictory for split in found.splits] == [1, 0]
    assert [split.num_leaked for split in found.splits] == [0, 1]
    assert "test examples whose inputs train has too: 1 of 2" in found.warnings
    assert "inputs with contradictory labels in train: 1" in found.warnings


def test_limits_count_what_is_used() -> None:
    splits = {"train": plain(30), "validation": examples(*((f"v {index}", "good") for index in range(9)))}
    found = audit(splits, DataConfig(limit=10, validation_limit=4))
    assert [(split.num_rows, split.num_used) for split in found.splits] == [(30, 10), (9, 4)]
    assert sum(count for _, count in found.tokens.histogram) == 10
    # Rows of train beyond the limit are not trained on, so they are no leak.
    assert audit({"train": plain(30), "test": plain(30)[20:]}, DataConfig(limit=10)).splits[1].num_leaked == 0
    assert audit({"train": plain(30), "test": plain(30)[5:15]}, DataConfig(limit=10)).splits[1].num_leaked == 5


def test_a_token_limit_counts_what_is_used() -> None:
    whole = audit({"train": plain(30)})
    found = audit({"train": plain(30)}, DataConfig(max_tokens=whole.tokens.num_tokens // 2))
    assert 0 < found.splits[0].num_used < 30
    assert found.tokens.num_tokens <= whole.tokens.num_tokens // 2


def test_empty_fields() -> None:
    found = audit({"train": [*plain(5), *examples((" ", "good"), ("x", ""))]})
    assert found.splits[0].num_empty == {"text": 1, "label": 1}
    assert any("empty answers (`label`) in train: 1" in problem for problem in found.problems)
    assert "`text` is empty in 1 of 7 train rows" in found.warnings


def test_unused_labels_and_long_answers_are_told() -> None:
    found = audit({"train": plain(5)}, labels=["good", "bad"], generation={"max_new_tokens": 1})
    assert "no training example has the label 'bad'" in found.warnings
    assert any(warning.endswith("max_new_tokens (1): 5") for warning in found.warnings)
    assert not any("longer" in w for w in audit({"train": plain(5)}, generation={"max_new_tokens": 9}).warnings)


def test_lengths_and_cuts() -> None:
    train = examples(*(("fox " * number, "good") for number in range(1, 101)))
    found = audit({"train": train})
    tokens = found.tokens
    assert tokens.median < tokens.p95 < tokens.p99 < tokens.longest
    assert tokens.max_length == tokens.p95
    assert tokens.num_cut == 5
    assert tokens.histogram[-1][0] >= tokens.longest
    assert sum(count for _, count in tokens.histogram) == 100
    short = audit({"train": train}, DataConfig(max_length=60))
    assert short.tokens.max_length == 60
    assert short.tokens.num_tokens < tokens.num_tokens
    assert any("cut to 60 tokens" in warning for warning in short.warnings)
    assert short.xrays[-1].num_cut_tokens > 0
    with pytest.raises(DataError, match="does not fit"):
        audit({"train": train}, DataConfig(max_length=10))
    with pytest.raises(ConfigError, match="512 positions"):
        audit({"train": train}, DataConfig(max_length=513))


def test_masks_that_spoil_training_are_found() -> None:
    whole = RenderedExample([1, 5, 6, 2], 2, 0)
    assert mask_problems([whole], {2}) == []
    assert mask_problems([whole, replace(whole, num_prompt_tokens=4)], {2}) == [
        "examples with an empty mask, none of whose tokens is trained: 1"
    ]
    assert mask_problems([whole, whole], {7}) == [
        "examples that do not train the end, so that answers would not stop: 2"
    ]


def test_x_ray_shows_every_trained_token() -> None:
    renderer = PromptRenderer(TOKENIZER, make_task().prompt, ["text"], "label")
    xray = x_ray(TOKENIZER, renderer.supervised({"text": "a<|im_end|>", "label": "日本 positive"}))
    assert xray.prompt == "<|im_start|>user\nText: a<|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert "".join(xray.trained) == "日本 positive<|im_end|>"
    assert xray.trained[-2:] == (" positive", "<|im_end|>")
    assert xray.trained[:3] == ("", "", "日")


def test_histogram_covers_all() -> None:
    assert histogram([5]) == ((5, 1),)
    assert histogram([1, 2, 3, 4], num_buckets=2) == ((2, 2), (4, 2))
    assert sum(count for _, count in histogram(list(range(1000)))) == 1000


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma2"])
def test_the_shape_of_a_base_is_that_of_its_model(architecture: str, tmp_path: Path) -> None:
    model: Any = make_model(architecture)
    model.config.save_pretrained(tmp_path)
    shape = base_shape(AutoConfig.from_pretrained(tmp_path))
    assert shape.num_params == model.num_parameters()
    bank = AdapterBank(model, num_slots=1, max_rank=8)
    assert list(shape.linears) == list(bank.layers)
    config = LoraConfig(r=8)
    made = bank.create(0, config, seed=0)
    assert num_adapter_params(config, shape) == sum(lora.a.numel() + lora.b.numel() for lora in made.values())
    with pytest.raises(ConfigError, match="no_such_layer"):
        num_adapter_params(LoraConfig(target_modules=("no_such_layer",)), shape)


def test_estimate_counts_steps_tokens_and_time() -> None:
    found = audit({"train": plain(50), "validation": examples(*((f"v {index}", "good") for index in range(10)))})
    fleet = FleetConfig.model_validate(
        {"adapters": {"a": {"task": "x"}, "b": {"task": "x", "trainer": {"max_steps": 2}}}}
    )
    shape = base_shape(make_model(num_hidden_layers=6).config)
    a, b = (estimate_member(member, found, shape) for member in fleet.members())
    assert (a.num_steps, b.num_steps) == (12, 2)
    assert a.num_train_tokens == 3 * found.tokens.num_tokens
    assert b.num_train_tokens == round(found.tokens.num_tokens / 2)
    assert a.num_validation_tokens == 6 * found.num_validation_tokens

    def whole(fleet: FleetConfig, speed: float = 1e9) -> Any:
        return estimate_fleet(fleet, [a, b], [found, found], shape, bytes_per_param=4, flop_per_second=speed)

    assert whole(fleet, 1e9).seconds == pytest.approx(2 * whole(fleet, 2e9).seconds)
    flop = 4 * (a.num_train_tokens + b.num_train_tokens) + 2 * (a.num_validation_tokens + b.num_validation_tokens)
    assert whole(fleet).seconds == pytest.approx(flop * shape.num_params / 0.5e9)
    checkpointed = fleet.model_copy(
        update={"trainer": fleet.trainer.model_copy(update={"gradient_checkpointing": True})}
    )
    assert whole(checkpointed).seconds > whole(fleet).seconds
    assert whole(checkpointed).memory_bytes < whole(fleet).memory_bytes


def test_speed_is_measured() -> None:
    assert 1e8 < measure_speed(torch.device("cpu"), torch.float32, seconds=0.05) < 1e14
