"""Forgetting and transfer over a tiny base: what is measured, what is kept, what the report makes of it."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from atoll.adapters.peft_files import WEIGHTS_NAME
from atoll.adapters.store import StoredAdapter
from atoll.config.load import load_task
from atoll.engine import Engine, build_engine
from atoll.errors import DataError
from atoll.evaluation.asking import Member
from atoll.evaluation.forgetting import Forgetting, generality_path, read_generality, score_generality
from atoll.evaluation.generality import measure_generality
from atoll.evaluation.outputs import BaseRecord, Output, RunRecord, read_lines
from atoll.evaluation.plots import plots
from atoll.evaluation.report_markdown import markdown
from atoll.evaluation.transfer import answers_path, read_transfer, score_transfer
from atoll.evaluation.transfer_run import run_transfer
from atoll.model.load import load_base
from atoll.tasks.dataset import load_split
from atoll.tasks.metrics import find_metric
from support.answers import make_results, outputs, record, run_record
from support.fleets import FleetOnDisk, make_fleet

PROMPTS = ("brown fox", "lazy dog and quick fox", "what is it")
Adapters = dict[str, StoredAdapter]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> FleetOnDisk:
    fleet = make_fleet(tmp_path_factory.mktemp("fleet"))
    fleet.publish("colors", seed=1)
    fleet.publish("shapes", seed=2, r=8)
    return fleet


@pytest.fixture(scope="module")
def engine(fleet: FleetOnDisk) -> Engine:
    return build_engine(load_base(str(fleet.folder / "base"), dtype="float32"), num_slots=2, max_rank=8)


@pytest.fixture(scope="module")
def adapters(fleet: FleetOnDisk) -> Adapters:
    return {name: fleet.store.resolve(name) for name in ("colors", "shapes")}


def run_of(engine: Engine, adapters: Adapters) -> RunRecord:
    base = BaseRecord(name="b", digest=engine.base.digest, num_params=1, dtype="float32", device="cpu")
    members = [record(name, task=name, adapter_digest=adapter.digest) for name, adapter in adapters.items()]
    return run_record(*members).model_copy(update={"base": base})


def forgetting(engine: Engine, adapters: Adapters, folder: Path) -> Forgetting:
    measure_generality(engine, list(adapters.values()), folder, prompts=PROMPTS)
    found = score_generality(folder, run_of(engine, adapters), 0)
    assert found is not None
    return found


def copied(adapter: StoredAdapter, folder: Path) -> Path:
    shutil.copytree(adapter.folder, folder)
    return folder


def test_bits_are_those_of_the_model_itself(engine: Engine, adapters: Adapters, tmp_path: Path) -> None:
    measured = measure_generality(engine, list(adapters.values()), tmp_path, prompts=PROMPTS)
    assert [answer.prompt for answer in measured.answers] == list(PROMPTS)
    model = AutoModelForCausalLM.from_pretrained(engine.base.folder, dtype=torch.float32)
    for answer in measured.answers:
        chat = [{"role": "user", "content": answer.prompt}]
        prompt = engine.base.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer.token_ids]])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(dim=-1).gather(1, torch.tensor(answer.token_ids)[:, None])
        assert answer.bits == pytest.approx(-logprobs.sum().item() / math.log(2), rel=1e-3)
        assert logits.argmax(dim=1).tolist() == list(answer.token_ids)
    assert all(found.bits != tuple(a.bits for a in measured.answers) for found in measured.adapters.values())


def test_an_adapter_that_does_nothing_has_forgotten_nothing(
    engine: Engine, adapters: Adapters, fleet: FleetOnDisk, tmp_path: Path
) -> None:
    still = copied(adapters["colors"], tmp_path / "still")
    save_file({n: torch.zeros_like(t) for n, t in load_file(still / WEIGHTS_NAME).items()}, still / WEIGHTS_NAME)
    found = forgetting(engine, {"still": fleet.store.publish("still", still), **adapters}, tmp_path)
    nothing, colors, _ = found.adapters
    assert nothing.change.low == pytest.approx(0, abs=1e-4)
    assert nothing.change.high == pytest.approx(0, abs=1e-4)
    # Greedy answers are the likeliest step by step, and random weights move probability away from them.
    assert colors.change.value > 1e-3
    assert colors.bits_per_token == pytest.approx(found.base_bits_per_token + colors.change.value)
    assert colors.perplexity_factor == pytest.approx(2**colors.change.value)


def test_what_is_known_is_not_measured_again(engine: Engine, adapters: Adapters, tmp_path: Path) -> None:
    colors = [adapters["colors"]]
    first = measure_generality(engine, colors, tmp_path, prompts=PROMPTS)
    num_steps = engine.stats().num_steps
    assert measure_generality(engine, colors, tmp_path, prompts=PROMPTS) == first
    assert engine.stats().num_steps == num_steps
    both = measure_generality(engine, list(adapters.values()), tmp_path, prompts=PROMPTS)
    assert both.answers == first.answers
    assert both.adapters["colors"] == first.adapters["colors"]
    assert len(measure_generality(engine, list(adapters.values()), tmp_path, prompts=PROMPTS[:2]).answers) == 2


def test_an_adapter_that_cannot_be_loaded_is_told(engine: Engine, adapters: Adapters, tmp_path: Path) -> None:
    broken = copied(adapters["colors"], tmp_path / "broken")
    (broken / WEIGHTS_NAME).write_bytes(b"not safetensors")
    damaged = replace(adapters["colors"], folder=broken, digest="damaged")
    found = forgetting(engine, {"colors": damaged, "shapes": adapters["shapes"]}, tmp_path)
    assert [adapter.name for adapter in found.adapters] == ["shapes"]
    assert list(found.not_measured) == ["colors"]
    assert found.not_measured["colors"] != "not measured"


def test_a_record_of_another_base_or_adapter_is_not_shown(engine: Engine, adapters: Adapters, tmp_path: Path) -> None:
    measure_generality(engine, [adapters["colors"]], tmp_path, prompts=PROMPTS)
    run = run_of(engine, adapters)
    found = score_generality(tmp_path, run, 0)
    assert found is not None
    assert found.not_measured == {"shapes": "not measured"}
    other = run.model_copy(update={"base": run.base.model_copy(update={"digest": "sha256:other"})})
    assert score_generality(tmp_path, other, 0) is None
    assert score_generality(tmp_path / "nowhere", run, 0) is None


@pytest.mark.parametrize("content", ["", "{}", "[1, 2", '{"format_version": 9}'])
def test_a_damaged_record_is_refused(content: str, tmp_path: Path) -> None:
    generality_path(tmp_path).parent.mkdir()
    generality_path(tmp_path).write_text(content)
    with pytest.raises(DataError, match="damaged"):
        read_generality(tmp_path)


def test_every_adapter_answers_every_task(
    engine: Engine, adapters: Adapters, fleet: FleetOnDisk, tmp_path: Path
) -> None:
    run_transfer(engine, [asked(fleet, adapter) for adapter in adapters.values()], tmp_path, num_examples=3)
    found, written = score_transfer(tmp_path, run_of(engine, adapters)), read_transfer(tmp_path)
    assert found is not None
    assert written is not None
    cells = {(cell.adapter, cell.member): cell for cell in found.cells}
    assert list(cells) == [(a, m) for a in (None, "colors", "shapes") for m in ("colors", "shapes")]
    assert [cell.lift is None for cell in found.cells] == [True, True, False, False, False, False]
    kept = {}
    for item in written.answers:
        path = answers_path(tmp_path, item.adapter, item.member)
        kept[item.adapter, item.member] = read_lines(Output, path, item.output_digest)
    assert all(len(answers) == 3 and not any(o.has_failed for o in answers) for answers in kept.values())
    own = {adapter: tuple(o.prediction for o in kept[adapter, "colors"]) for adapter in (None, "colors", "shapes")}
    assert len(set(own.values())) == 3
    expected = find_metric("rouge_l").score([(o.prediction, o.reference) for o in kept["colors", "shapes"]])
    assert cells["colors", "shapes"].score.value == pytest.approx(expected)
    assert score_transfer(tmp_path, run_of(engine, {"colors": adapters["colors"]})) is None


def asked(fleet: FleetOnDisk, adapter: StoredAdapter) -> tuple[Member, list[object]]:
    assert adapter.contract is not None
    task = load_task(fleet.folder / f"{adapter.name}.yaml")
    return Member(adapter, adapter.contract, task), load_split(task, "test", for_scoring=True)


def test_the_report_shows_both(engine: Engine, adapters: Adapters, fleet: FleetOnDisk, tmp_path: Path) -> None:
    colors = {"colors": adapters["colors"]}
    found = forgetting(engine, colors, tmp_path)
    run_transfer(engine, [asked(fleet, adapters["colors"])], tmp_path, num_examples=2)
    plain = make_results((record("colors"), outputs(1, 100), outputs(90, 100)))
    assert "## Forgetting" not in markdown(plain)
    assert plots(plain)["transfer"] == ""
    results = plain.model_copy(
        update={"forgetting": found, "transfer": score_transfer(tmp_path, run_of(engine, colors))}
    )
    text = markdown(results)
    assert "## Forgetting" in text
    assert "## Transfer" in text
    assert all(plots(results)[name].startswith("<svg") for name in ("forgetting", "transfer"))
