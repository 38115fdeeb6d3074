"""A whole evaluation over a tiny base: who is asked what, what is kept, and what becomes of failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.adapters.peft_files import WEIGHTS_NAME
from atoll.adapters.store import CARD_NAME
from atoll.config.load import load_task
from atoll.engine import Engine, Request, SamplingParams, build_engine
from atoll.errors import AdapterInvalid, AdapterNotFound, AtollError, DataError, Incompatible, NotFound, UsageError
from atoll.evaluation.fleet import evaluate_fleet
from atoll.evaluation.outputs import ADAPTER, BASE, Output, read_outputs, read_run
from atoll.evaluation.report import write_report
from atoll.evaluation.results import Results
from atoll.evaluation.run import Member, run_evaluation
from atoll.model.load import load_base
from atoll.text.prompt import PromptRenderer
from support.fleets import FleetOnDisk, make_fleet, write_rows

REPORT_FILES = ("results.json", "report.md", "scores.svg")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> FleetOnDisk:
    """Two adapters in the store; the first one has an older revision too."""
    fleet = make_fleet(tmp_path_factory.mktemp("fleet"))
    fleet.publish("colors", seed=7)
    fleet.publish("colors", seed=1)
    fleet.publish("shapes", seed=2, r=8)
    return fleet


@pytest.fixture(scope="module")
def results(fleet: FleetOnDisk) -> Results:
    return evaluate(fleet, fleet.folder / "eval")


@pytest.fixture(scope="module")
def engine(fleet: FleetOnDisk) -> Engine:
    return build_engine(load_base(str(fleet.folder / "base"), dtype="float32"), num_slots=1, max_rank=8)


def evaluate(fleet: FleetOnDisk, folder: Path, *adapter_ids: str, limit: int = 100, seed: int = 0) -> Results:
    return evaluate_fleet(
        fleet.config,
        fleet_path=fleet.path,
        store=fleet.store,
        folder=folder,
        adapter_ids=adapter_ids,
        limit=limit,
        seed=seed,
    )


def member(fleet: FleetOnDisk, name: str) -> Member:
    adapter = fleet.store.resolve(name)
    assert adapter.contract is not None
    return Member(adapter, adapter.contract, load_task(fleet.folder / f"{name}.yaml"))


def answers(folder: Path) -> dict[str, dict[str, list[Output]]]:
    return {item.name: read_outputs(folder, item) for item in read_run(folder).members}


def test_all_contenders_answer_all_examples_on_the_same_prompts(fleet: FleetOnDisk, results: Results) -> None:
    found = answers(fleet.folder / "eval")
    assert list(found) == ["colors", "shapes"]
    for outputs in found.values():
        assert list(outputs) == [BASE, ADAPTER]
        base, adapter = outputs[BASE], outputs[ADAPTER]
        assert len(base) == len(adapter) == 8
        assert [o.example_id for o in base] == [o.example_id for o in adapter]
        assert [o.prompt_digest for o in base] == [o.prompt_digest for o in adapter]
        assert [o.prediction for o in base] != [o.prediction for o in adapter]
        assert all(o.error is None and 1 <= o.num_new_tokens <= 6 for o in base + adapter)
    assert [item.num_examples for item in results.members] == [8, 8]


def test_each_answer_is_the_greedy_one_to_the_prompt_that_was_trained(
    fleet: FleetOnDisk, results: Results, engine: Engine
) -> None:
    item = member(fleet, "shapes")
    rows = [json.loads(line) for line in (fleet.folder / "shapes.jsonl").read_text().splitlines()]
    trained = PromptRenderer(
        engine.base.tokenizer, item.task.prompt, item.task.input_columns, item.task.target_column, 64
    ).supervised(rows[0])
    prompt = item.contract.renderer(engine.base.tokenizer).prompt(rows[0])
    assert prompt.ids == trained.ids[: trained.num_prompt_tokens]
    request = Request(prompt_ids=tuple(prompt.ids), sampling=SamplingParams(max_new_tokens=6), adapter=item.adapter)
    (alone,) = engine.generate([request])
    kept = {output.prediction for output in answers(fleet.folder / "eval")["shapes"][ADAPTER]}
    assert alone.text in kept


def test_the_report_is_the_same_bytes_from_raw_answers_alone(fleet: FleetOnDisk, results: Results) -> None:
    folder = fleet.folder / "eval"
    before = {name: (folder / name).read_bytes() for name in REPORT_FILES}
    for name in REPORT_FILES:
        (folder / name).unlink()
    code = "import sys, pathlib; from atoll.evaluation.report import write_report as w; w(pathlib.Path(sys.argv[1]))"
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=environment)
    assert {name: (folder / name).read_bytes() for name in REPORT_FILES} == before
    assert write_report(folder) == results
    assert {name: (folder / name).read_bytes() for name in REPORT_FILES} == before


def test_the_same_seed_gives_the_same_answers_and_scores(fleet: FleetOnDisk, results: Results, tmp_path: Path) -> None:
    again = [member.model_copy(update={"contenders": ()}) for member in evaluate(fleet, tmp_path).members]
    assert again == [member.model_copy(update={"contenders": ()}) for member in results.members]


def test_a_limit_and_a_revision_are_kept_to(fleet: FleetOnDisk, results: Results, tmp_path: Path) -> None:
    limited = evaluate(fleet, tmp_path, "colors@1", limit=3, seed=5)
    assert [(item.adapter_id, item.num_examples) for item in limited.members] == [("colors@1", 3)]
    assert [item.adapter_id for item in results.members] == ["colors@2", "shapes@1"]
    run = read_run(tmp_path)
    assert (run.limit, run.seed) == (3, 5)
    assert run.members[0].adapter_digest == fleet.store.resolve("colors@1").digest


def test_more_members_than_slots_are_all_answered(fleet: FleetOnDisk, engine: Engine, tmp_path: Path) -> None:
    run_evaluation(engine, [member(fleet, "colors"), member(fleet, "shapes")], tmp_path, fleet="tiny", limit=4)
    outputs = answers(tmp_path)
    assert all(o.error is None for found in outputs.values() for kept in found.values() for o in kept)
    # One mixed run: a prompt of each contender within the first steps, so far fewer steps than one by one.
    assert read_run(tmp_path).num_steps < 4 * 4 * 6


def test_a_prompt_that_cannot_fit_counts_as_zero_and_is_listed(
    fleet: FleetOnDisk, engine: Engine, tmp_path: Path
) -> None:
    item = member(fleet, "colors")
    tight = replace(item, contract=item.contract.model_copy(update={"max_length": 4}))
    run_evaluation(engine, [tight], tmp_path, fleet="tiny", limit=3)
    (scored,) = write_report(tmp_path).members
    assert [(f.contender, "does not fit" in f.error) for f in scored.failures] == [(BASE, True)] * 3 + [
        (ADAPTER, True)
    ] * 3
    assert {name: score.value for name, score in scored.primary.scores.items()} == {BASE: 0.0, ADAPTER: 0.0}
    report = (tmp_path / "report.md").read_text()
    assert "3 requests to the adapter failed and count as 0" in report
    assert scored.failures[0].example_id in report


def test_a_request_that_fails_counts_as_zero_and_the_others_go_on(
    fleet: FleetOnDisk, engine: Engine, tmp_path: Path
) -> None:
    item = member(fleet, "colors")
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in item.adapter.folder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / WEIGHTS_NAME).write_bytes(b"not safetensors")
    damaged = replace(item, adapter=replace(item.adapter, folder=broken, digest="damaged"))
    run_evaluation(engine, [damaged, member(fleet, "shapes")], tmp_path / "eval", fleet="tiny", limit=3)
    outputs = answers(tmp_path / "eval")
    assert all(output.error and not output.prediction for output in outputs["colors"][ADAPTER])
    others = [*outputs["colors"][BASE], *outputs["shapes"][BASE], *outputs["shapes"][ADAPTER]]
    assert all(output.error is None for output in others)
    scored = write_report(tmp_path / "eval").members[0]
    assert scored.primary.scores[ADAPTER].value == 0.0
    assert len(scored.failures) == 3


def test_long_rows_are_cut_as_in_training_and_counted(fleet: FleetOnDisk, engine: Engine, tmp_path: Path) -> None:
    rows = [{"text": "lazy dog " * 60, "answer": "yes"}, {"text": "short", "answer": "no"}]
    (tmp_path / "colors").mkdir()
    write_rows(tmp_path / "colors" / "test.jsonl", rows)
    run_evaluation(engine, [member(fleet, "colors")], tmp_path / "eval", fleet="tiny", data_root=tmp_path)
    kept = answers(tmp_path / "eval")["colors"][ADAPTER]
    assert sorted(o.num_cut_tokens > 0 for o in kept) == [False, True]
    assert max(o.num_prompt_tokens for o in kept) <= 64
    assert write_report(tmp_path / "eval").members[0].num_cut_prompts == 1


def test_columns_that_a_metric_reads_are_kept_with_the_answers(
    fleet: FleetOnDisk, engine: Engine, tmp_path: Path
) -> None:
    rows = [{"text": f"text {index}", "answer": "yes", "answers": '["yes", "no"]'} for index in range(3)]
    (tmp_path / "colors").mkdir()
    write_rows(tmp_path / "colors" / "test.jsonl", rows)
    item = member(fleet, "colors")
    item = replace(item, task=item.task.model_copy(update={"metrics": ("accuracy", "drop_exact")}))
    run_evaluation(engine, [item], tmp_path / "eval", fleet="tiny", data_root=tmp_path)
    kept = answers(tmp_path / "eval")["colors"]
    assert all(output.columns == {"answers": '["yes", "no"]'} for output in kept[ADAPTER] + kept[BASE])
    scored = write_report(tmp_path / "eval").members[0].metrics[1]
    right = [output.prediction.strip().lower() in ("yes", "no") for output in kept[ADAPTER]]
    assert scored.scores[ADAPTER].value == pytest.approx(sum(right) / 3)
    write_rows(tmp_path / "colors" / "test.jsonl", [{"text": "x", "answer": "yes"}])
    with pytest.raises(DataError, match="`answers` is missing"):
        run_evaluation(engine, [item], tmp_path / "eval", fleet="tiny", data_root=tmp_path)


def test_the_scores_are_in_the_model_cards(fleet: FleetOnDisk, results: Results) -> None:
    for item in results.members:
        card = (fleet.store.resolve(item.adapter_id).folder / CARD_NAME).read_text()
        assert "model-index:" in card
        assert f"type: {item.primary.metric}" in card


def test_answers_that_were_changed_or_lost_are_refused(fleet: FleetOnDisk, engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no results"):
        write_report(tmp_path)
    run_evaluation(engine, [member(fleet, "colors")], tmp_path, fleet="tiny", limit=2)
    path = tmp_path / "raw" / "colors" / "adapter.jsonl"
    content = path.read_text()
    path.write_text(content.replace('"prediction":"', '"prediction":"label 0'))
    with pytest.raises(DataError, match="do not belong to the run"):
        write_report(tmp_path)
    path.unlink()
    with pytest.raises(NotFound, match=r"adapter\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "raw" / "run.json").write_text('{"format_version": 1, "surprise": true}')
    with pytest.raises(DataError, match="damaged"):
        write_report(tmp_path)
    assert not any((tmp_path / name).exists() for name in REPORT_FILES)


def test_adapters_that_cannot_be_evaluated_are_refused(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path, num_examples=2)

    def refused(kind: type[AtollError], *ids: str) -> AtollError:
        with pytest.raises(kind) as caught:
            evaluate(fleet, tmp_path / "eval", *ids)
        assert not (tmp_path / "eval").exists()
        return caught.value

    error = refused(AdapterNotFound, "colors")
    assert "not tuned yet" in error.what
    assert error.mend == f"atoll tune {fleet.path}"

    own = fleet.publish("colors", seed=1)
    assert own.contract is not None
    assert "has no revision" in refused(AdapterNotFound, "colors@9").what
    assert "did you mean colors" in str(refused(UsageError, "color"))
    assert "named twice" in refused(UsageError, "colors", "colors@1").what

    foreign = own.contract.base.model_copy(update={"digest": "sha256:" + "0" * 64})
    fleet.publish("colors", seed=2, base=foreign)
    assert "another base model" in refused(Incompatible, "colors").what
    fleet.publish("colors", seed=3, task="shapes")
    assert "another task" in refused(Incompatible, "colors").what
    fleet.publish("colors", seed=4, target_column="label")
    assert "'answer' now" in str(refused(Incompatible, "colors").why)

    latest = fleet.publish("colors", seed=5)
    (latest.folder / WEIGHTS_NAME).write_bytes(b"not safetensors")
    refused(AdapterInvalid, "colors")


def test_a_changed_prompt_is_noted_and_the_tuned_one_used(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path, num_examples=2)
    adapter = fleet.publish("colors")
    assert adapter.contract is not None
    other = adapter.contract.prompt.model_copy(update={"template": "Say what {text} is."})
    fleet.publish("colors", prompt=other)
    first = evaluate(fleet, tmp_path / "first", "colors@1")
    second = evaluate(fleet, tmp_path / "second", "colors@2")
    assert not any("prompt has changed" in note for note in first.run.members[0].notes)
    assert any("prompt has changed" in note for note in second.run.members[0].notes)
    digests = [answers(tmp_path / name)["colors"][BASE][0].prompt_digest for name in ("first", "second")]
    assert digests[0] != digests[1]
