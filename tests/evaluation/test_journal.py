"""Nothing is computed or paid twice, whatever ended the run before; nothing is taken for what it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.config.load import load_task
from atoll.engine import build_engine
from atoll.evaluation.contenders import Remote
from atoll.evaluation.fleet import evaluate_fleet
from atoll.evaluation.journal import Entry, Journal, answer_key
from atoll.evaluation.outputs import read_outputs, read_run
from atoll.evaluation.run import Member, run_evaluation
from atoll.model.load import load_base
from support.fleets import FleetOnDisk, make_fleet
from support.providers import FakeProvider, fake_provider
from support.servers import wait_until

CODE = """
import sys
from atoll.cli.main import main
sys.argv = ["atoll", *sys.argv[1:]]
main()
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> FleetOnDisk:
    fleet = make_fleet(tmp_path_factory.mktemp("fleet"))
    fleet.publish("colors", seed=1)
    fleet.publish("shapes", seed=2)
    return fleet


def files(folder: Path) -> list[Path]:
    return sorted((folder / "raw" / "partial").glob("*.jsonl"))


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for path in files(folder) for line in path.read_text().splitlines()]


def start(fleet: FleetOnDisk, folder: Path, provider: FakeProvider) -> subprocess.Popen[bytes]:
    arguments = ["eval", str(fleet.path), "--store", str(fleet.store.root), "--output", str(folder)]
    arguments += ["--adapter", "colors", "--against", f"{provider.url}#m", "--concurrency", "1", "--no-forgetting"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("ATOLL_REMOTE_KEY", None)
    return subprocess.Popen([sys.executable, "-c", CODE, *arguments], env=environment)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_no_answered_request_is_made_again(fleet: FleetOnDisk, tmp_path: Path) -> None:
    with fake_provider() as provider:
        usual = provider.usual
        provider.script = [usual, usual, usual, provider.hangs]
        process = start(fleet, tmp_path, provider)
        try:
            wait_until(lambda: len(provider.asked) == 4, timeout_s=240)
        finally:
            process.kill()
            process.wait(30)
        provider.release.set()
        answered = provider.prompts()[:3]
        assert len(lines(tmp_path)) == 3
        assert not (tmp_path / "results.json").exists()

        assert start(fleet, tmp_path, provider).wait(240) == 0
        asked = provider.prompts()
        assert len(set(asked)) == 8
        assert len(asked) == 9  # the one that was under way, and was never answered, is the only one asked twice
        assert all(asked.count(prompt) == 1 for prompt in answered)
    (record,) = read_run(tmp_path).members
    outputs = read_outputs(tmp_path, record)
    assert all(output.error is None for answers in outputs.values() for output in answers)
    assert [item.num_new_tokens for item in record.contenders][-1] == 8 * 3


def test_an_interrupted_engine_keeps_its_answers(fleet: FleetOnDisk, tmp_path: Path) -> None:
    def evaluate(folder: Path, stop_after: float | None = None) -> int:
        def on_progress(what: str, fraction: float | None) -> None:
            if stop_after is not None and what.endswith(" answers") and (fraction or 0) >= stop_after:
                raise KeyboardInterrupt

        evaluate_fleet(fleet.config, fleet_path=fleet.path, store=fleet.store, folder=folder, on_progress=on_progress)
        return read_run(folder).num_steps

    evaluate(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "halves", stop_after=0.5)
    kept = len(lines(tmp_path / "halves"))
    assert 16 <= kept < 32
    assert evaluate(tmp_path / "halves") > 0
    assert len(lines(tmp_path / "halves")) == 32
    assert evaluate(tmp_path / "halves") == 0
    whole, halves = (read_run(tmp_path / name) for name in ("whole", "halves"))
    assert [item.output_digests for item in halves.members] == [item.output_digests for item in whole.members]
    # The time of both halves is in the record.
    seconds = sum(float(str(line["seconds"])) for line in lines(tmp_path / "halves"))
    assert halves.seconds == pytest.approx(seconds, abs=1e-2)


def test_answers_of_another_adapter_or_of_other_settings_are_not_taken(fleet: FleetOnDisk, tmp_path: Path) -> None:
    def num_asked(**options: object) -> int:
        before = len(lines(tmp_path))
        evaluate_fleet(
            fleet.config,
            fleet_path=fleet.path,
            store=fleet.store,
            folder=tmp_path,
            adapter_ids=["colors"],
            **options,  # type: ignore[arg-type]
        )
        return len(lines(tmp_path)) - before

    assert num_asked() == 16
    assert num_asked() == 0
    assert num_asked(limit=3, seed=0) == 0
    fleet.publish("colors", seed=9)
    assert num_asked() == 8  # the base's answers still hold
    assert num_asked(is_fresh=True) == 16


def test_two_adapters_for_one_task_ask_the_base_once(fleet: FleetOnDisk, tmp_path: Path) -> None:
    adapter = fleet.store.resolve("colors")
    assert adapter.contract is not None
    first = Member(adapter, adapter.contract, load_task(fleet.folder / "colors.yaml"))
    second = replace(first, adapter=replace(adapter, name="again"))
    engine = build_engine(load_base(str(fleet.folder / "base"), dtype="float32"), num_slots=2, max_rank=8)
    run = run_evaluation(engine, [first, second], tmp_path, fleet="tiny", limit=4)
    assert len(lines(tmp_path)) == 8
    for member in run.members:
        assert all(output.error is None for answers in read_outputs(tmp_path, member).values() for output in answers)


def test_torn_and_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for number in range(3):
            journal.append(Entry(key=f"{number}", prediction="löng\u2028 \n line"))
    (path,) = files(tmp_path)
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(content[0] + b'{"key": 3}\n' + b"\xff\xfe\n" + content[1] + content[2][:-5])
    journal = Journal(tmp_path)
    assert [journal.get(f"{number}") is not None for number in range(3)] == [True, True, False]
    assert journal.get("0") == Entry(key="0", prediction="löng\u2028 \n line")
    assert Journal(tmp_path, is_fresh=True).get("0") is None


def test_a_journal_that_nothing_came_to_leaves_no_file(tmp_path: Path) -> None:
    with Journal(tmp_path):
        pass
    assert not (tmp_path / "raw").exists()


def test_lost_answers_are_summed_and_are_no_answers(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for cost_usd in (0.1, 0.2):
            journal.append(Entry(key="a", cost_usd=cost_usd, is_lost=True))
    journal = Journal(tmp_path)
    assert journal.get("a") is None
    assert journal.lost_usd(["a", "a", "b"]) == pytest.approx(0.3)


def test_a_key_tells_everything_apart() -> None:
    parts = {"prompt": ("a", "b"), "stop": (), "url": None}
    keys = {
        answer_key(**parts),
        answer_key(**parts | {"prompt": ("ab",)}),
        answer_key(**parts | {"stop": ("x",)}),
        answer_key(**parts | {"url": "http://host/v1"}),
        answer_key(**parts | {"prompt": ("a", "b\ud800")}),
    }
    assert len(keys) == 5
    assert answer_key(**dict(reversed(parts.items()))) in keys
    assert Remote("m").name != Remote("m", "http://host/v1").name
