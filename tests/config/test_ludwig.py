"""Ludwig's files: what they mean here, what is refused of them, and that no file ends otherwise."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.config.fleet import FleetConfig
from atoll.config.load import load_fleet, load_ludwig, load_task, load_task_text
from atoll.config.ludwig_rules import RULES, SAMPLING_RULES
from atoll.config.task import TaskConfig
from atoll.config.yaml_tree import parse_yaml
from atoll.errors import ConfigError

FOLDER = Path(__file__).parent / "ludwig"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if not path.name.endswith(".expected.yaml"))
BASIC = """\
model_type: llm
base_model: mistral-7b
input_features:
  - {name: text, type: text}
output_features:
  - {name: label, type: text}
prompt: {template: "{text} ->"}
adapter: {type: lora}
trainer: {type: finetune, epochs: 1}
"""


def values(text: str) -> Any:
    root, problems = parse_yaml(text)
    assert root is not None
    assert not problems
    return root.value


def write(folder: Path, text: str) -> Path:
    path = folder / "l.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_means_what_stands_beside_it(path: Path) -> None:
    expected = values(path.with_suffix(".expected.yaml").read_text(encoding="utf-8"))
    found = load_ludwig(path)
    assert found is not None
    assert found.fleet == expected["fleet"]
    assert found.task == expected["task"]
    assert list(found.notes) == expected["notes"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_loads_as_a_fleet_and_as_its_task(path: Path) -> None:
    found = load_ludwig(path)
    assert found is not None
    fleet, task = load_fleet(path), load_task(path)
    assert fleet.output == f"runs/{path.stem}"
    assert [member.task_ref for member in fleet.members()] == [str(path)]
    own = FleetConfig.model_validate(found.fleet)
    assert (fleet.trainer, fleet.adapter, fleet.data) == (own.trainer, own.adapter, own.data)
    assert task.dataset.train is not None
    assert task.dataset.train.path == str(path.with_suffix(".csv"))
    assert task.prompt == TaskConfig.model_validate(found.task).prompt


def test_a_relative_base_is_beside_the_file_and_a_hub_id_stays() -> None:
    assert load_fleet(FOLDER / "by_customer.yaml").base_model == str(FOLDER / "base")
    assert load_fleet(FOLDER / "phi.yaml").base_model == "microsoft/phi-2"


def test_a_column_called_split_divides_the_rows_unless_the_file_says_how(tmp_path: Path) -> None:
    path = write(tmp_path, BASIC)
    drawn, fixed = load_ludwig(path), load_ludwig(path, columns=["text", "label", "split"])
    assert drawn is not None
    assert fixed is not None
    assert "part" in str(drawn.task["dataset"])
    assert 'TRY_CAST(\\"split\\" AS DOUBLE) = 1' in json.dumps(fixed.task["dataset"])
    said = load_ludwig(write(tmp_path, BASIC + "preprocessing: {split: {type: random}}"), columns=["split"])
    assert said is not None
    assert said.task["dataset"] == drawn.task["dataset"]


REFUSED = {
    "another kind of model": ("model_type: llm", "model_type: ecd", "1:13", "use llm"),
    "full fine-tuning": ("adapter: {type: lora}\n", "", "1:1", "add `adapter: ...`"),
    "another adapter": ("{type: lora}", "{type: ia3}", "8:17", "use lora"),
    "no training": ("type: finetune, ", "", "9:1", "add `type: ...`"),
    "misspelt key": ("epochs: 1", "epoch: 1", "9:27", "did you mean `epochs`?"),
    "key of a feature": ("name: text, ", "name: text, colum: x, ", "4:18", "did you mean `column`?"),
    "category": ("name: label, type: text", "name: label, type: category", "6:25", "use text"),
    "two inputs": ("  - {name: text, type: text}\n", "  - {name: text, type: text}\n  - {name: b, type: text}\n",
                   "5:5", "name further columns"),
    "the answer in the prompt": ("{text} ->", "{text} {label}", "7:20", "use other columns"),
    "a prompt without a column": ("{text} ->", "nothing", "7:20", "name at least one column"),
    "a single brace": ("{text} ->", "{text} {", "7:20", "literal brace"),
    "a format": ("{text} ->", "{text:.2f}", "7:20", "write the column as it is to be shown"),
    "a part of a column": ("{text} ->", "{text[0]}", "7:20", "rename the column"),
    "retrieval": ('"{text} ->"', '"{text}", retrieval: {type: random, k: 2}', "7:41", "into a column"),
    "context": ("{text} ->", "{text} {__context__}", "7:20", "into a column"),
    "unknown kind of base": ("mistral-7b", "acme/novel", "8:10", "add, for example, `target_modules"),
    "DoRA": ("type: lora", "type: lora, use_dora: true", "8:33", "set `use_dora: false`"),
    "a rank too high": ("type: lora", "type: lora, r: 999", "8:26", "at most 256"),
    "trained biases": ("type: lora", "type: lora, bias_type: all", "8:34", "set `bias_type: none`"),
    "another optimiser": ("epochs: 1", "optimizer: {type: lbfgs}", "9:45", "use adam"),
    "Adam's decay": ("epochs: 1", "optimizer: {weight_decay: 0.1}", "9:53", "use `type: adamw`"),
    "exponential decay": ("epochs: 1", "learning_rate_scheduler: {decay: exponential}", "9:60", "use linear or cosine"),
    "plateaus": ("epochs: 1", "learning_rate_scheduler: {reduce_on_plateau: 2}", "9:72", "choose a `decay`"),
    "a batch that fits": ("epochs: 1", "batch_size: auto", "9:39", "write a number"),
    "accumulation that does not": ("epochs: 1", "batch_size: 3, effective_batch_size: 16", "9:64", "make it one"),
    "a checkpoint within a step": (
        "epochs: 1", "gradient_accumulation_steps: 8, steps_per_checkpoint: 12", "9:81", "cut a step short"),
    "two kinds of checkpoints": (
        "epochs: 1", "steps_per_checkpoint: 1, checkpoints_per_epoch: 1", "9:49", "remove one of the two"),
    "clipped values": ("epochs: 1", "gradient_clipping: {clipvalue: 1.0}", "9:58", "use `clipglobalnorm`"),
    "another metric": ("epochs: 1", "validation_metric: bleu", "9:46", "set it to `loss`"),
    "shares beyond 1": ("", "preprocessing: {split: {probabilities: [0.9, 0.9, 0.1]}}\n", "10:40", "make 1"),
    "two shares": ("", "preprocessing: {split: {probabilities: [0.9, 0.1]}}\n", "10:40", ""),
    "no column to stratify": ("", "preprocessing: {split: {type: stratify}}\n", "10:24", "add `column: ...`"),
    "a sample by number": ("", "preprocessing: {sample_size: 10}\n", "10:30", "use `sample_ratio`"),
    "nothing of a sample": ("", "preprocessing: {sample_ratio: 1.0e-12}\n", "10:31", "give a larger share"),
    "beams": ("", "generation: {num_beams: 4}\n", "10:25", "remove it"),
    "a nucleus": ("", "generation: {top_p: 0.9}\n", "10:21", "send it with the requests"),
    "search": ("", "hyperopt: {goal: minimize}\n", "10:11", "values as adapters of one fleet"),
    "fp4": ("", "quantization: {bits: 4, bnb_4bit_quant_type: fp4}\n", "10:46", "nf4"),
    "three bits": ("", "quantization: {bits: 3}\n", "10:22", "use 4 or 8"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "place", "mend"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_translated_is_refused_by_its_place(
    tmp_path: Path, old: str, new: str, place: str, mend: str
) -> None:
    text = BASIC.replace(old, new, 1) if old else BASIC + new
    path = write(tmp_path, text)
    for load in (load_fleet, load_task, load_ludwig):
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert caught.value.where == f"{path}:{place}", str(caught.value)
        assert mend in (caught.value.mend or ""), str(caught.value)


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = BASIC.replace("epochs: 1", "epochs: 0, should_shuffle: false") + "generation: {num_beams: 2}\n"
    with pytest.raises(ConfigError, match="3 problems") as caught:
        load_fleet(write(tmp_path, text))
    for name in ("trainer.epochs", "trainer.should_shuffle", "generation.num_beams"):
        assert name in str(caught.value)


def test_another_file_is_no_ludwig_file(tmp_path: Path) -> None:
    assert load_ludwig(write(tmp_path, "adapters: {a: {task: dates}}\n")) is None


KNOWN = {path: list(rules) for path, rules in RULES.items()} | {("generation",): list(SAMPLING_RULES)}
EXTRA = st.sampled_from([(path, key) for path, keys in KNOWN.items() for key in keys])
ODD = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        -1,
        2.5,
        1e30,
        "",
        "auto",
        "x",
        "{",
        "{a}",
        [],
        [1],
        {},
        {"type": "x"},
        {"a": {"b": None}},
    ]
).map(copy.deepcopy)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values within a document."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [found for key, child in items for found in [(*path, key), *places(child, (*path, key))]]


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    """A valid file of which keys were taken, changed, or added where Ludwig knows them."""
    document = copy.deepcopy(values(draw(st.sampled_from(FILES)).read_text(encoding="utf-8")))
    for _ in range(draw(st.integers(0, 4))):
        *path, key = draw(st.sampled_from(places(document)))
        parent = document
        for part in path:
            parent = parent[part]
        if draw(st.booleans()):
            parent[key] = draw(ODD)
        elif isinstance(parent, dict):
            del parent[key]
        if not places(document):
            return document
    for path, key in draw(st.lists(EXTRA, max_size=3)):
        section = document
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section[key] = draw(ODD)
    return document


@given(damaged())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_ludwig_file_is_translated_or_refused(document: Any) -> None:
    try:
        task = load_task_text(json.dumps(document), "t.yaml")
    except ConfigError as error:
        message = str(error)
    else:
        message = ""
        assert set(task.prompt.columns) <= set(task.input_columns)
    assert not message or message.startswith("t.yaml:")


@given(damaged())
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_any_ludwig_file_makes_a_fleet_or_is_refused(tmp_path: Path, document: Any) -> None:
    path = write(tmp_path, json.dumps(document))
    try:
        members = load_fleet(path).members()
    except ConfigError:
        return
    assert len(members) == 1
