"""Who can be named by `--against`, and what each of them answers in a whole evaluation over a tiny base."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.adapters.catalog import AdapterCatalog
from atoll.config.load import load_task
from atoll.engine import Engine, build_engine
from atoll.errors import OverBudget, UsageError
from atoll.evaluation.asking import Member
from atoll.evaluation.contenders import FewShot, Remote, parse_contenders
from atoll.evaluation.outputs import ADAPTER, BASE, MemberRecord, Output, read_inputs, read_outputs, read_run
from atoll.evaluation.report import write_report
from atoll.evaluation.run import run_evaluation
from atoll.evaluation.spending import RemoteOptions, TokenRate, token_rates
from atoll.model.load import load_base
from atoll.server.app import create_app
from atoll.text.prompt import PromptRenderer
from support.fleets import FleetOnDisk, make_fleet, write_rows
from support.providers import fails, fake_provider, says
from support.servers import serving

TRAIN = [{"text": f"colors number {i} brown fox", "answer": f"label {i % 2}"} for i in range(100, 109)]
TEST = [{"text": f"colors number {i} brown fox", "answer": f"label {i % 3}"} for i in range(8)]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATOLL_REMOTE_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> FleetOnDisk:
    fleet = make_fleet(tmp_path_factory.mktemp("fleet"))
    fleet.publish("colors", seed=1)
    return fleet


@pytest.fixture(scope="module")
def data(fleet: FleetOnDisk) -> Path:
    (fleet.folder / "data" / "colors").mkdir(parents=True)
    write_rows(fleet.folder / "data" / "colors" / "train.jsonl", TRAIN)
    write_rows(fleet.folder / "data" / "colors" / "test.jsonl", TEST)
    return fleet.folder / "data"


@pytest.fixture(scope="module")
def engine(fleet: FleetOnDisk) -> Engine:
    return build_engine(load_base(str(fleet.folder / "base"), dtype="float32"), num_slots=1, max_rank=8)


@pytest.fixture
def member(fleet: FleetOnDisk) -> Member:
    adapter = fleet.store.resolve("colors")
    assert adapter.contract is not None
    return Member(adapter, adapter.contract, load_task(fleet.folder / "colors.yaml"))


def found(folder: Path) -> tuple[MemberRecord, dict[str, list[Output]]]:
    (record,) = read_run(folder).members
    return record, read_outputs(folder, record)


def test_what_against_names() -> None:
    texts = ["few-shot:3", "majority", "openai:gpt-4o", "http://127.0.0.1:3000/v1/#a/b@2", "few_shot:3", "base"]
    few, openai, own = parse_contenders(texts)
    assert (few, openai) == (FewShot(3), Remote("gpt-4o"))
    assert own == Remote("a/b@2", "http://127.0.0.1:3000/v1")
    names = [few.name, openai.name, own.name]
    assert names[:2] == ["few_shot_3", "openai_gpt-4o"]
    assert all(name.replace("_", "").replace("-", "").replace(".", "").isalnum() for name in names)
    assert Remote("a/b").name != Remote("a_b").name != Remote("a b").name
    assert len(Remote("m" * 400).name) < 100


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("few-shot:0", "from 1 to 64"),
        ("few-shot:many", "from 1 to 64"),
        ("few-shot:" + "9" * 400, "from 1 to 64"),
        ("fewshot:3", "did you mean few-shot"),
        ("openai:", "names no model"),
        ("gpt-4o", "is no contender"),
        ("http://host/v1", "which model"),
        ("http:///v1#m", "no host"),
        ("http://host:99999/v1#m", "not an address"),
        ("https://host/v1?a=b#m", "query"),
        ("", "is no contender"),
        ("openai:a\nb", "printable"),
        ("x" * 1000, "at most"),
    ],
)
def test_what_names_nobody_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match="is no contender") as caught:
        parse_contenders([text])
    assert said in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        parse_contenders(["http://me:secret@host/v1#m"])
    assert "secret" not in str(caught.value)


def test_everybody_answers_the_same_examples(engine: Engine, member: Member, data: Path, tmp_path: Path) -> None:
    run_evaluation(engine, [member], tmp_path, fleet="tiny", data_root=data, against=[FewShot(2)])
    record, outputs = found(tmp_path)
    assert [(item.name, item.kind) for item in record.contenders] == [
        (BASE, "base"),
        (ADAPTER, "adapter"),
        ("majority", "majority"),
        ("nearest", "nearest"),
        ("few_shot_2", "few_shot"),
    ]
    ids = [output.example_id for output in outputs[BASE]]
    assert all([output.example_id for output in answers] == ids for answers in outputs.values())
    assert {output.prediction for output in outputs["majority"]} == {"label 0"}
    assert {output.prediction for output in outputs["nearest"]} <= {"label 0", "label 1"}
    assert outputs[BASE][0].prompt_digest != outputs["few_shot_2"][0].prompt_digest
    assert outputs["few_shot_2"][0].num_prompt_tokens > outputs[BASE][0].num_prompt_tokens
    assert read_inputs(tmp_path, record)[ids[0]]["text"].startswith("colors number")
    # The engine's time is shared out among those who took it.
    costs = {item.name: item.cost_usd or 0 for item in record.contenders}
    assert costs["majority"] == costs["nearest"] == 0
    assert costs["few_shot_2"] > costs[BASE] > 0
    assert sum(costs.values()) == pytest.approx(read_run(tmp_path).cost_usd)
    assert set(write_report(tmp_path).members[0].primary.scores) == set(outputs)


def test_without_train_those_who_need_it_are_left_out_and_it_is_said(
    engine: Engine, member: Member, tmp_path: Path
) -> None:
    run_evaluation(engine, [member], tmp_path, fleet="tiny", limit=2, against=[FewShot(2)])
    record, outputs = found(tmp_path)
    assert list(outputs) == [BASE, ADAPTER]
    assert "no train split" in record.notes[0]
    assert "majority, nearest, few_shot_2 could not answer" in record.notes[0]


def test_few_shot_prompts_show_examples_of_train_before_the_prompt(engine: Engine, member: Member) -> None:
    tokenizer = engine.base.tokenizer
    renderer = member.contract.renderer(tokenizer)
    text = str(tokenizer.decode(renderer.prompt_after(TEST[0], TRAIN[:2])))
    assert text.count("Classify: ") == 3
    places = [text.index(part) for part in ("number 100", "label 0", "number 101", "label 1", "number 0 ")]
    assert places == sorted(places)
    assert renderer.prompt_after(TEST[0], []) == renderer.prompt(TEST[0]).ids
    assert text.startswith(str(tokenizer.decode(renderer.prompt(TEST[0]).ids)).partition("Classify")[0])


@pytest.mark.parametrize("has_chat", [False, True])
def test_no_example_goes_into_a_prompt_that_has_no_room_for_it(
    engine: Engine, member: Member, tmp_path: Path, has_chat: bool
) -> None:
    long = [{"text": f"colors {i} " + "lazy dog " * 30, "answer": "label 0"} for i in range(20)]
    (tmp_path / "colors").mkdir()
    write_rows(tmp_path / "colors" / "train.jsonl", long)
    write_rows(tmp_path / "colors" / "test.jsonl", TEST)
    contract = member.contract.model_copy(update={"chat": has_chat})
    run_evaluation(
        engine,
        [replace(member, contract=contract)],
        tmp_path / "eval",
        fleet="tiny",
        data_root=tmp_path,
        against=[FewShot(20)],
    )
    record, outputs = found(tmp_path / "eval")
    few = outputs["few_shot_20"]
    assert all(output.error is None for output in few)
    assert max(output.num_prompt_tokens for output in few) + 6 <= engine.max_length
    assert max(output.num_prompt_tokens for output in few) > engine.max_length / 2
    assert "fewer in 8 of 8 prompts" in record.contenders[-1].detail


def test_our_own_server_gives_the_same_answers_as_the_adapter_itself(
    fleet: FleetOnDisk, engine: Engine, member: Member, data: Path, tmp_path: Path
) -> None:
    with (
        build_engine(load_base(str(fleet.folder / "base"), dtype="float32"), num_slots=2, max_rank=8) as behind,
        serving(create_app(behind, behind.base, AdapterCatalog(fleet.store, []))) as url,
    ):
        rival = Remote("colors", f"{url}/v1")
        run_evaluation(engine, [member], tmp_path, fleet="tiny", data_root=data, against=[rival])
    record, outputs = found(tmp_path)
    own, remote = outputs[ADAPTER], outputs[rival.name]
    assert all(output.error is None for output in remote)
    assert [output.prediction for output in remote] == [output.prediction for output in own]
    assert [output.num_new_tokens for output in remote] == [output.num_new_tokens for output in own]
    assert [output.num_prompt_tokens for output in remote] == [output.num_prompt_tokens for output in own]
    assert record.contenders[-1].cost_usd is None  # what a server of one's own costs is not known here
    assert [output.prediction for output in own] != [output.prediction for output in outputs[BASE]]


def test_plain_prompts_are_completed_as_text(engine: Engine, member: Member, data: Path, tmp_path: Path) -> None:
    plain = replace(member, contract=member.contract.model_copy(update={"chat": False}))
    with fake_provider() as provider:
        remote = Remote("m", provider.url)
        run_evaluation(engine, [plain], tmp_path, fleet="tiny", data_root=data, limit=1, against=[remote])
    (asked,) = provider.asked
    text = str(
        engine.base.tokenizer.decode(
            PromptRenderer(
                engine.base.tokenizer,
                plain.task.prompt.model_copy(update={"chat_template": False}),
                ("text",),
                "answer",
            )
            .prompt({"text": asked["prompt"].removeprefix("Classify: ")})
            .ids
        )
    )
    assert asked["prompt"] == text


def test_a_remote_contender_is_asked_once_and_costs_what_it_counted(
    engine: Engine, member: Member, data: Path, tmp_path: Path
) -> None:
    with fake_provider(fails(429, headers={"Retry-After": "0"}), fails(400, "no")) as provider:
        remote = Remote("m", provider.url)
        options = RemoteOptions(concurrency=1, unlisted=TokenRate(1.0, 10.0), max_usd=1.0)

        def run() -> tuple[MemberRecord, dict[str, list[Output]]]:
            run_evaluation(engine, [member], tmp_path, fleet="tiny", data_root=data, against=[remote], remote=options)
            return found(tmp_path)

        record, outputs = run()
        assert [output.error for output in outputs[remote.name]] == ["status 400: no", *[None] * 7]
        assert record.contenders[-1].cost_usd == pytest.approx(7 * (20 * 1 + 3 * 10) / 1e6)
        assert len(provider.asked) == 9
        again, outputs = run()
        # The failure alone was asked again; the engine had nothing left to do.
        assert len(provider.asked) == 10
        assert all(output.error is None for output in outputs[remote.name])
        assert again.contenders[-1].cost_usd == pytest.approx(8 * 50 / 1e6)
        assert read_run(tmp_path).num_steps == 0
        assert again.contenders[0] == record.contenders[0]
    assert write_report(tmp_path).members[0].failures == ()


def test_the_cap_counts_what_earlier_runs_have_paid(engine: Engine, member: Member, data: Path, tmp_path: Path) -> None:
    with fake_provider(usual=says("label 1", usage={"prompt_tokens": 60, "completion_tokens": 6})) as provider:
        remote = Remote("m", provider.url)
        for _ in range(2):
            options = RemoteOptions(concurrency=2, unlisted=TokenRate(1.0, 1.0), max_usd=0.000_3)
            with pytest.raises(OverBudget):
                run_evaluation(
                    engine, [member], tmp_path, fleet="tiny", data_root=data, against=[remote], remote=options
                )
            assert len(provider.asked) == 4
        options = replace(options, max_usd=0.01)
        run_evaluation(engine, [member], tmp_path, fleet="tiny", data_root=data, against=[remote], remote=options)
        assert len(set(provider.prompts())) == len(provider.asked) == 8


def test_a_cap_without_a_price_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="no price is known for my-model at http://host/v1"):
        token_rates([Remote("my-model", "http://host/v1")], RemoteOptions(max_usd=1.0))
    # A model's name says what it costs at OpenAI, and nowhere else.
    with pytest.raises(UsageError, match="no price is known"):
        token_rates([Remote("gpt-4o", "http://host/v1")], RemoteOptions(max_usd=1.0))
    given = TokenRate(0.0, 0.0)
    assert token_rates([Remote("x")], RemoteOptions(max_usd=1.0, unlisted=given)) == {Remote("x"): given}
    listed = token_rates([Remote("gpt-4o")], RemoteOptions(max_usd=1.0, unlisted=given))[Remote("gpt-4o")]
    assert listed is not None
    assert listed.usd_per_million_output > listed.usd_per_million_input > 0


def test_an_answer_outside_of_the_labels_is_no_failure_and_scores_nothing(
    engine: Engine, member: Member, data: Path, tmp_path: Path
) -> None:
    labels = ("label 0", "label 1", "label 2")
    labelled = replace(member, task=member.task.model_copy(update={"labels": labels}))
    with fake_provider(usual=says("something else")) as provider:
        remote = Remote("m", provider.url)
        run_evaluation(engine, [labelled], tmp_path, fleet="tiny", data_root=data, against=[remote])
    result = write_report(tmp_path).members[0]
    assert result.num_outside_labels[remote.name] == 8
    assert result.num_outside_labels["majority"] == 0
    assert result.primary.scores[remote.name].value == 0
    assert result.failures == ()
    assert json.loads((tmp_path / "results.json").read_text())["members"][0]["num_outside_labels"][remote.name] == 8
