"""The task files that ship with Atoll: they load, fit their data, and ask for metrics that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atoll.config.task import TaskConfig
from atoll.config.template import parse_template
from atoll.tasks.dataset import SPLITS, Split, has_split, load_split
from atoll.tasks.metrics import Answer, find_metric
from atoll.tasks.task import builtin_tasks, find_task
from atoll.text.prompt import PromptRenderer

# Those of LoRA Land's table 12, in its order.
LORA_LAND = [
    "bc5cdr", "conllpp", "e2e_nlg", "tldr_content_gen", "tldr_headline_gen", "viggo", "webnlg", "magicoder", "wikisql",
    "boolq", "dbpedia", "customer_support", "glue_qnli", "glue_stsb", "legal", "reuters", "mmlu", "winogrande",
    "arc_combined", "glue_cola", "glue_mnli", "glue_mrpc", "glue_qqp", "glue_sst2", "glue_wnli", "covid", "hellaswag",
    "hellaswag_processed", "jigsaw", "drop", "gsm8k",
]  # fmt: skip
STAND_INS = ["multidogo", "code_alpaca"]
DEMO = ["dates", "sql", "support"]
EVERY = sorted(LORA_LAND + STAND_INS + DEMO + ["ifeval"])
# Their prompts have to list what a model cannot guess: 22 made-up labels.
LONG_PROMPTS = {"multidogo": 120}
MAX_PROMPT_TOKENS = 62


def test_the_built_in_tasks_are_these() -> None:
    assert len(LORA_LAND) == len(set(LORA_LAND)) == 31
    assert sorted(builtin_tasks()) == EVERY


@pytest.mark.parametrize("name", EVERY)
def test_a_definition_is_complete(name: str) -> None:
    task = find_task(name)
    assert task.name == name
    assert task.description.endswith((".", ")", "?"))
    assert task.licence
    assert (task.dataset.train is not None) == (name != "ifeval")
    assert task.dataset.test is not None
    assert task.example is not None
    assert set(task.input_columns) == set(task.prompt.columns)
    for metric in task.metrics:
        find_metric(metric)


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"ifeval"}))
def test_the_worked_example_scores_full_marks_and_an_empty_answer_none(name: str) -> None:
    task = find_task(name)
    assert task.example is not None
    target, columns = task.example.target, task.example.inputs
    for metric in map(find_metric, task.metrics):
        # A rank needs something to be ranked against; 5.0 is above the example's own 3.6.
        others = [Answer("5.0", "5.0")] if metric.rank else []
        assert metric.score([Answer(target, target, columns), *others]) == 1, metric.name
        assert metric.score([Answer("", target, columns)]) == 0, metric.name


def test_the_example_of_ifeval_is_followed_by_an_answer_without_commas() -> None:
    task = find_task("ifeval")
    assert task.example is not None
    for metric in map(find_metric, task.metrics):
        for answer, credit in (('"Rhine Elbe and Oder"', 1), ('"Rhine, Elbe and Oder"', 0), ("Rhine Elbe and Oder", 0)):
            assert metric.score([Answer(answer, task.example.target, task.example.inputs)]) == credit


@pytest.mark.parametrize("name", [*LORA_LAND, "code_alpaca"])
def test_published_scores_can_be_compared(name: str) -> None:
    task = find_task(name)
    assert task.published is not None
    assert task.published.metric == task.metrics[0]
    scores = {field: value for field, value in task.published.model_dump().items() if isinstance(value, float)}
    assert len(scores) == 8
    assert all(0 < score <= 1 for score in scores.values())
    assert "2405.00732" in task.published.source


def test_the_measure_that_was_published_stands_beside_ours_where_it_is_another() -> None:
    theirs = {name for name in LORA_LAND if any("_as_published" in metric for metric in find_task(name).metrics)}
    same = {name for name in LORA_LAND if find_task(name).metrics[0] in ("rouge_l", "pass_at_1")}
    assert theirs | same | {"arc_combined", "covid", "winogrande"} == set(LORA_LAND)
    assert not theirs & same


@pytest.mark.parametrize("name", EVERY)
def test_every_label_is_named_in_the_prompt(name: str) -> None:
    task = find_task(name)
    for label in task.labels or ():
        for part in label.split(" / "):
            assert part in (task.prompt.system or "") + task.prompt.template, label


@pytest.mark.parametrize("name", DEMO)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_demo_tasks_load_without_files(name: str, split: Split) -> None:
    task = find_task(name)
    examples = load_split(task, split, limit=20)
    assert len(examples) == 20
    for example in examples:
        target = example.row[task.target_column]
        assert find_metric(task.metrics[0]).score([(target, target)]) == 1


def splits_at(folder: Path) -> list[tuple[TaskConfig, Split]]:
    tasks = [find_task(name) for name in EVERY if name not in DEMO]
    return [(task, split) for task in tasks for split in SPLITS if (folder / task.name / f"{split}.jsonl.gz").is_file()]


def test_every_split_of_the_data_fits_its_definition(loraland: Path) -> None:
    """Twenty rows of each: nothing is empty, the right answer has full marks, an empty one none."""
    found = splits_at(loraland)
    assert len({task.name for task, _ in found}) == 32
    for task, split in found:
        scored = split == "test" or not {"pass_at_1", "ifeval_loose"} & set(task.metrics)
        examples = load_split(task, split, data_root=loraland, limit=20, for_scoring=scored)
        assert len(examples) == 20
        assert all(example.row[column].strip() for example in examples for column in example.row)
        if not scored or task.name == "ifeval":
            continue
        for metric in map(find_metric, task.metrics):
            right = [Answer(e.row[task.target_column], e.row[task.target_column], e.columns) for e in examples]
            assert metric.score(right) == pytest.approx(1), (task.name, split, metric.name)
            assert metric.score([answer._replace(prediction="") for answer in right]) == 0


def test_no_label_of_the_data_is_missing_and_none_is_made_up(loraland: Path) -> None:
    for task, split in splits_at(loraland):
        if task.labels is not None and split == "train":
            examples = load_split(task, split, data_root=loraland)
            assert {example.row[task.target_column] for example in examples} == set(task.labels), task.name


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from atoll.model.load import load_tokenizer
    from atoll.model.source import resolve_base

    return load_tokenizer(resolve_base("smollm2-135m-instruct").folder)


@pytest.mark.slow
def test_every_prompt_renders_and_a_length_limit_keeps_its_frame(loraland: Path, tokenizer: Any) -> None:
    """Twenty rows of each split; cut to half, a prompt still begins and ends as the template does."""
    for task, split in splits_at(loraland):
        renderer = PromptRenderer(tokenizer, task.prompt, task.input_columns, task.target_column)
        last = parse_template(task.prompt.template)[-1]
        for example in load_split(task, split, data_root=loraland, limit=20):
            whole = renderer.supervised(example.row)
            assert whole.num_cut_tokens == 0
            assert 0 < whole.num_prompt_tokens < len(whole.ids)
            limit = len(whole.ids) - renderer.num_column_tokens(example.row) // 2
            cut = PromptRenderer(tokenizer, task.prompt, task.input_columns, task.target_column, limit)
            prompt = cut.supervised(example.row)
            assert len(prompt.ids) <= limit
            text = str(tokenizer.decode(prompt.ids[: prompt.num_prompt_tokens]))
            assert (task.prompt.system or "") in text
            if not last.is_column:
                assert last.text.strip() in text


@pytest.mark.slow
def test_prompts_are_short(tokenizer: Any) -> None:
    for name in EVERY:
        task = find_task(name)
        literals = [part.text for part in parse_template(task.prompt.template) if not part.is_column]
        ids = tokenizer(f"{task.prompt.system or ''} {' '.join(literals)}", add_special_tokens=False)["input_ids"]
        assert len(ids) <= LONG_PROMPTS.get(name, MAX_PROMPT_TOKENS), name


@pytest.mark.slow
def test_answers_have_room(loraland: Path, tokenizer: Any) -> None:
    """99 targets of 100 fit into max_new_tokens with the end token, in the default base's tokens; as a rule 999 do."""
    for task, split in splits_at(loraland):
        if task.name != "ifeval":
            rows = [example.row for example in load_split(task, split, data_root=loraland, limit=1_500)]
            encoded = tokenizer([row[task.target_column] for row in rows], add_special_tokens=False)["input_ids"]
            too_long = [ids for ids in encoded if len(ids) + 1 > task.generation.max_new_tokens]
            assert len(too_long) <= len(rows) / 100, task.name


def test_metric_columns_are_read_for_scoring_alone(loraland: Path) -> None:
    task = find_task("drop")
    [plain] = load_split(task, "test", data_root=loraland, limit=1)
    [scored] = load_split(task, "test", data_root=loraland, limit=1, for_scoring=True)
    assert plain.columns == {}
    assert set(scored.columns) == {"answers"}
    assert plain.example_id == scored.example_id
    assert has_split(task, "test", data_root=loraland)
