"""`atoll show`, `rm`, `import` and `export` over a tiny base and real adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from atoll.adapters.contract import CONTRACT_NAME, read_contract
from atoll.adapters.peft_files import CONFIG_NAME, WEIGHTS_NAME
from atoll.adapters.store import AdapterStore
from atoll.cli.ending import run_to_its_end
from atoll.cli.main import app
from support.adapters import save_random_adapter
from support.engines import World, make_prompt
from support.tiny import make_model

TASK = """\
name: moods
dataset: {train: rows.jsonl}
input_columns: [text]
target_column: answer
prompt: {template: "Mood of: {text}"}
metrics: [accuracy]
"""
CARD = """\
---
model-index:
- name: sentiment
  results:
  - dataset: {name: reviews, type: reviews, split: test}
    metrics:
    - {type: accuracy, value: 0.91, args: {low: 0.88, high: 0.94, num_examples: 300}}
    - {type: broken, value: [1]}
---
# sentiment
"""


class Commands:
    """The command line over one store."""

    def __init__(self, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.store = AdapterStore(store)
        self._capsys = capsys

    def run(self, *arguments: str, code: int = 0) -> str:
        """What a command prints; its errors where it fails."""
        assert run_to_its_end(app, [*arguments, "--store", str(self.store.root)]) == code
        printed = self._capsys.readouterr()
        return printed.err if code else printed.out

    def json(self, *arguments: str) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(self.run(*arguments, "--json"))
        return fields


@pytest.fixture
def commands(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Commands:
    """A copy of the world's store, so that each test may change it."""
    shutil.copytree(world.base_folder.parent / "store", tmp_path / "store")
    return Commands(tmp_path / "store", capsys)


def test_show_tells_the_contract_the_scores_and_the_revisions(commands: Commands, world: World) -> None:
    stored = commands.store.resolve("sentiment")
    commands.store.write_card(stored, CARD)
    text = commands.run("show", "sentiment")
    for part in (stored.digest, "Is this positive or negative?", "inputs:     text", "rank 4, alpha 8", WEIGHTS_NAME):
        assert part in text
    assert "reviews test  accuracy  0.910  [0.880, 0.940]" in text
    fields = commands.json("show", "sentiment@1")
    assert fields["contract"]["base"]["name"] == str(world.base_folder)
    assert [score["metric"] for score in fields["scores"]] == ["accuracy"]
    assert [entry["revision"] for entry in fields["revisions"]] == [1]
    assert fields["files"][WEIGHTS_NAME] == fields["size_bytes"]
    assert "none: requests bring whole prompts" in commands.run("show", "alpha")
    assert "did you mean 'sentiment'" in commands.run("show", "sentimnt", code=4)


@pytest.mark.parametrize(
    "card", ["---\n{{{\n---\n", "---\nmodel-index: 3\n---\n", "---\n", "\x1b[2J", "---\n- [a\n---\n"]
)
def test_a_strange_card_has_no_scores_and_does_no_harm(commands: Commands, card: str) -> None:
    commands.store.write_card(commands.store.resolve("alpha"), card)
    assert commands.json("show", "alpha")["scores"] == []


def test_rm_wants_a_yes_and_takes_what_was_named(commands: Commands) -> None:
    assert "--yes" in commands.run("rm", "alpha", code=2)
    assert "alpha" in commands.store.names()
    removed = commands.json("rm", "alpha", "--yes")
    assert removed["removed"] == ["alpha@1"]
    assert removed["freed_bytes"] > 0
    assert "no adapter 'alpha'" in commands.run("rm", "alpha", "--yes", code=4)
    assert "beta" in commands.run("ls")


def test_import_checks_an_adapter_and_says_what_it_lacks(commands: Commands, world: World, tmp_path: Path) -> None:
    folder = save_random_adapter(tmp_path / "made", make_model(), seed=7)
    (folder / "README.md").unlink()
    fields = commands.json("import", str(folder / WEIGHTS_NAME), "--name", "made")
    assert fields["id"] == "made@1"
    assert [what.split(",")[0] for what in fields["missing"]] == [
        "it has no contract",
        "its config names no base model; whoever serves it must know",
        "it was not held against a base model; --base-model does that",
        "it has no model card (README.md)",
    ]
    held = commands.json("import", str(folder), "--name", "made", "--base-model", str(world.base_folder))
    assert not any("was not held" in what for what in held["missing"])
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps(config | {"use_dora": True}))
    assert "use_dora is not supported" in commands.run("import", str(folder), "--name", "dora", code=5)
    assert "there is no folder" in commands.run("import", str(tmp_path / "none"), "--name", "none", code=4)
    assert "not an adapter's name" in commands.run("import", str(folder), "--name", "../x", code=2)


def test_import_gives_an_adapter_the_contract_of_a_task(commands: Commands, world: World, tmp_path: Path) -> None:
    folder = save_random_adapter(tmp_path / "made", make_model(), seed=8)
    (tmp_path / "moods.yaml").write_text(TASK)
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "answer": "b"}\n')
    options = ("--task", str(tmp_path / "moods.yaml"), "--base-model", str(world.base_folder))
    commands.json("import", str(folder), "--name", "moods", *options)
    contract = commands.store.resolve("moods").contract
    assert contract is not None
    assert (contract.task, contract.prompt.columns, contract.chat) == ("moods", ("text",), True)
    assert read_contract(folder) is None, "the source is left as it is"
    stored = commands.store.resolve("moods").folder
    assert "has a contract already" in commands.run("import", str(stored), "--name", "again", *options, code=2)


def test_import_refuses_an_adapter_of_another_base(commands: Commands, world: World, tmp_path: Path) -> None:
    folder = save_random_adapter(tmp_path / "wide", make_model(intermediate_size=128), seed=9)
    told = commands.run("import", str(folder), "--name", "wide", "--base-model", str(world.base_folder), code=5)
    assert "made for another base model" in told
    assert "wide" not in commands.store.names()


def test_an_exported_peft_folder_is_the_stored_one_byte_for_byte(commands: Commands, tmp_path: Path) -> None:
    stored = commands.store.resolve("sentiment")
    target = tmp_path / "out" / "sentiment"
    commands.run("export", "sentiment", "--to", str(target))
    files = {path.name: path.read_bytes() for path in stored.folder.iterdir()}
    assert {path.name: path.read_bytes() for path in target.iterdir()} == files
    assert {CONFIG_NAME, WEIGHTS_NAME, CONTRACT_NAME} <= files.keys()
    assert "there is something already" in commands.run("export", "sentiment", "--to", str(target), code=2)
    (stored.folder / WEIGHTS_NAME).write_bytes(b"damaged")
    assert "damaged" in commands.run("export", "sentiment", "--to", str(tmp_path / "bad"), code=5)
    assert [path.name for path in tmp_path.glob("*bad*")] == [], "nothing half-written is left"


@pytest.mark.parametrize("adapter", ["sentiment", "delta"])
def test_a_merged_model_has_the_logits_of_base_and_adapter(
    commands: Commands, world: World, tmp_path: Path, adapter: str
) -> None:
    """delta: rsLoRA, no contract."""
    base = () if adapter == "sentiment" else ("--base-model", str(world.base_folder))
    commands.run("export", adapter, "--to", str(tmp_path / "merged"), "--format", "merged", *base)
    ids = torch.tensor([make_prompt(3, 20)])
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)(ids).logits
        model = AutoModelForCausalLM.from_pretrained(world.base_folder, dtype=torch.float32)
        bare = model(ids).logits
        expected = PeftModel.from_pretrained(model, commands.store.resolve(adapter).folder).eval()(ids).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    assert (merged - bare).abs().max() > 0.01
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_a_merged_model_needs_a_base(commands: Commands, tmp_path: Path) -> None:
    told = commands.run("export", "alpha", "--to", str(tmp_path / "m"), "--format", "merged", code=2)
    assert "--base-model" in told
    assert not (tmp_path / "m").exists()
