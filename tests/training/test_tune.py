"""`tune` from a fleet file to the store: the whole way on a tiny base, killed and resumed, and fed with bad input."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from atoll.adapters.peft_files import CONFIG_NAME, WEIGHTS_NAME
from atoll.adapters.peft_io import read_adapter
from atoll.adapters.store import AdapterStore
from atoll.cli.tune import stopping
from atoll.config.load import load_fleet
from atoll.errors import AtollError, ConfigError, UsageError
from atoll.training.events import read_events
from atoll.training.quote import kept_quote
from atoll.training.run_lock import run_lock
from atoll.training.tune import TuneResult, TuneRun

TASK = """
name: tickets
description: Which team answers?
dataset: {train: tickets.csv, validation: tickets.csv}
input_columns: [text]
target_column: team
prompt: {template: "Ticket: {text}\\nTeam:"}
labels: [billing, shipping]
metrics: [accuracy]
"""
FLEET = """
base_model: BASE
dtype: float32
adapters:
  small: {task: ./tickets.yaml, adapter: {r: 2, target_modules: [q_proj, v_proj]}}
  large: {task: ./tickets.yaml, adapter: {r: 5}, trainer: {seed: 1, epochs: 2}}
trainer: {epochs: 1, effective_batch_size: 4, token_budget: 150, checkpoint_every_steps: 1}
output: OUTPUT
"""


@pytest.fixture
def fleet(tmp_path: Path, tiny_base_folder: Path) -> Path:
    rng = random.Random(0)
    words = {"billing": ["invoice", "charge", "refund", "paid"], "shipping": ["parcel", "late", "box", "courier"]}
    rows = ["text,team"]
    for number in range(24):
        team = ("billing", "shipping")[number % 2]
        rows.append(f"{' '.join(rng.choices(words[team], k=rng.randint(2, 9)))} {number},{team}")
    (tmp_path / "tickets.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "tickets.yaml").write_text(TASK)
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET.replace("BASE", str(tiny_base_folder)).replace("OUTPUT", str(tmp_path / "run")))
    return path


def tune(fleet: Path, **options: Any) -> TuneResult:
    store = AdapterStore(fleet.parent / "store")
    config = load_fleet(fleet)
    return TuneRun(config, run_folder=Path(config.output or ""), store=store, **options).run()


def test_the_store_gets_adapters_that_peft_loads(fleet: Path) -> None:
    events: list[dict[str, Any]] = []
    result = tune(fleet, report=events.append)
    assert result.finished
    assert [adapter.id for adapter in result.adapters] == ["small@1", "large@1"]
    kinds = ["start", "base", "data", "plan", "quote", "progress", "published", "end"]
    assert list(dict.fromkeys(event["event"] for event in events)) in (
        kinds,
        [*kinds[:4], "progress", "quote", *kinds[6:]],
    )
    assert result.bill.cost_usd > 0
    for adapter in result.adapters:
        base: Any = AutoModelForCausalLM.from_pretrained(load_fleet(fleet).base_model, dtype=torch.float32)
        ids = torch.arange(5, 25)[None]
        plain = base(input_ids=ids).logits.detach().clone()
        with torch.no_grad():
            tuned = PeftModel.from_pretrained(base, adapter.folder).eval()(input_ids=ids).logits
        assert not torch.allclose(plain, tuned, atol=1e-4), "the adapter must change something"
        contract = adapter.contract
        assert contract is not None
        assert contract.training is not None
        assert contract.training.num_examples == 24
        assert contract.training.cost_usd > 0
        card = (adapter.folder / "README.md").read_text()
        assert card.startswith("---\n")
        assert "Ticket: {text}" in card
    assert not list((fleet.parent / "run").glob("checkpoint-*")), "a finished run needs no checkpoint"


def test_the_same_run_gives_the_same_bits(fleet: Path) -> None:
    first, second = tune(fleet), tune(fleet)
    for one, two in zip(first.adapters, second.adapters, strict=True):
        assert (one.folder / WEIGHTS_NAME).read_bytes() == (two.folder / WEIGHTS_NAME).read_bytes()


def test_another_process_can_follow_a_run_by_its_events(fleet: Path) -> None:
    events: list[dict[str, Any]] = []
    result = tune(fleet, report=events.append)
    kept, _ = read_events(result.run_folder)
    assert [event for event in events if event["event"] != "progress"] == [
        event for event in kept if event["event"] != "progress"
    ]
    progress = [event for event in kept if event["event"] == "progress"]
    assert all(event in events for event in progress)
    assert len({(event["name"], event["step"]) for event in progress}) == len(progress)
    assert {"grad_norm", "learning_rate", "num_tokens", "seconds", "cost_usd", "time"} <= set(progress[0])
    times = [event["seconds"] for event in progress]
    assert times == sorted(times)
    assert kept[-1]["bill"] == result.bill.model_dump(mode="json")
    assert all(event["time"] > 1e9 for event in kept)


def test_a_run_quotes_itself_from_its_first_passes_and_is_billed_in_the_end(fleet: Path) -> None:
    result = tune(fleet)
    assert result.quote is not None
    assert result.quote.made_from == "first passes"
    assert kept_quote(result.run_folder, result.quote.fingerprint) == result.quote
    quoted = {member.name: member.num_train_tokens for member in result.quote.members}
    assert quoted == {member.name: member.num_tokens for member in result.bill.members}
    shares = [adapter.contract.training.cost_usd for adapter in result.adapters if adapter.contract.training]
    assert sum(shares) == pytest.approx(result.bill.cost_usd)
    again = tune(fleet)
    assert again.quote == result.quote, "a quote that is there is kept"
    fleet.write_text(fleet.read_text().replace("epochs: 2", "epochs: 1"))
    other = tune(fleet)
    assert other.quote is not None
    assert other.quote.fingerprint != result.quote.fingerprint


def test_two_runs_do_not_share_a_folder(fleet: Path) -> None:
    with run_lock(fleet.parent / "run"), pytest.raises(UsageError, match="at work"):
        tune(fleet)
    assert [path.name for path in (fleet.parent / "run").iterdir()] == ["tune.lock"]
    assert tune(fleet).finished


def test_ctrl_c_before_training_stops_at_once_and_leaves_nothing_to_resume(fleet: Path) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "base":
            os.kill(os.getpid(), signal.SIGINT)

    config = load_fleet(fleet)
    folder = Path(config.output or "")
    run = TuneRun(config, run_folder=folder, store=AdapterStore(fleet.parent / "store"), report=interrupt)
    with pytest.raises(KeyboardInterrupt), stopping(run):
        run.run()
    assert read_events(folder)[0][-1]["event"] == "failed"
    assert not list(folder.glob("checkpoint-*"))
    assert tune(fleet).finished


def start(fleet: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "atoll", "tune", str(fleet), "--store", str(fleet.parent / "store"), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def weights(fleet: Path) -> dict[str, bytes]:
    return {a.name: (a.folder / WEIGHTS_NAME).read_bytes() for a in AdapterStore(fleet.parent / "store").list()}


@pytest.mark.slow
def test_kill_at_random_instants_then_resume_gives_the_same_bits(fleet: Path) -> None:
    whole = start(fleet)
    out, err = whole.communicate()
    assert whole.returncode == 0, err
    num_progress = sum('"progress"' in line for line in out.splitlines())
    expected = weights(fleet)
    for path in (fleet.parent / "store" / "names").iterdir():
        path.unlink()
    rng = random.Random(7)
    for _ in range(3):
        process = start(fleet, "--resume")
        assert process.stdout is not None
        seen, kill_at = 0, rng.randint(1, num_progress // 2)
        for line in process.stdout:
            seen += '"progress"' in line
            if seen == kill_at:
                os.kill(process.pid, signal.SIGKILL)
                break
        process.communicate()
    last = start(fleet, "--resume")
    _, err = last.communicate()
    assert last.returncode == 0, err
    assert weights(fleet) == expected


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(fleet: Path) -> None:
    process = start(fleet)
    assert process.stdout is not None
    for line in process.stdout:
        if '"progress"' in line:
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate()
    assert process.returncode == 130
    assert f"atoll tune {fleet} --resume" in err
    again = start(fleet)
    _, err = again.communicate()
    assert again.returncode == 3, "a checkpoint is not overwritten by mistake"
    assert "--resume" in err
    resumed = start(fleet, "--resume")
    _, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert set(weights(fleet)) == {"small", "large"}


def test_a_checkpoint_of_other_settings_is_not_resumed(fleet: Path) -> None:
    config = load_fleet(fleet)
    run = TuneRun(config, run_folder=Path(config.output or ""), store=AdapterStore(fleet.parent / "store"))
    run.request_stop()
    assert not run.run().finished
    fleet.write_text(fleet.read_text().replace("r: 5", "r: 6"))
    changed = load_fleet(fleet)
    other = TuneRun(changed, run_folder=Path(changed.output or ""), store=AdapterStore(fleet.parent / "store"))
    with pytest.raises(ConfigError, match="other settings") as caught:
        other.run(resume=True)
    assert "`output`" in (caught.value.mend or "")
    part = TuneRun(
        changed.only(["large"]), run_folder=Path(changed.output or ""), store=AdapterStore(fleet.parent / "store")
    )
    with pytest.raises(ConfigError, match="other settings") as caught:
        part.run(resume=True)
    assert "the checkpoint is of small, large, this run of large" in (caught.value.why or "")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("tickets.yaml", "{text}", "{txt}", "txt"),
        ("tickets.yaml", "tickets.csv,", "missing.csv,", "missing.csv"),
        ("tickets.yaml", "target_column: team", "target_column: queue", "queue"),
        ("tickets.csv", ",billing", ",biling", "biling"),
        ("fleet.yaml", "q_proj", "c_attn", "c_attn"),
        ("fleet.yaml", "token_budget", "token_buget", "token_budget"),
        ("fleet.yaml", "./tickets.yaml", "no_such_task", "no_such_task"),
    ],
)
def test_bad_input_is_told_and_leaves_no_adapter(fleet: Path, file: str, old: str, new: str, message: str) -> None:
    path = fleet.parent / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(AtollError, match=message) as caught:
        tune(fleet)
    assert caught.value.exit_code in (2, 3, 4, 5)
    assert AdapterStore(fleet.parent / "store").names() == []
    assert not (fleet.parent / "run" / "adapters").exists()


def test_an_empty_split_is_told(fleet: Path) -> None:
    (fleet.parent / "tickets.csv").write_text("text,team\n")
    with pytest.raises(AtollError, match=r"no rows|empty"):
        tune(fleet)


def test_a_published_adapter_is_complete(fleet: Path) -> None:
    adapter = tune(fleet).adapters[1]
    assert read_adapter(adapter.folder).max_rank == 5
    assert json.loads((adapter.folder / CONFIG_NAME).read_text())["lora_alpha"] == 10
