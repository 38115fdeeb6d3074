"""Scores in model cards, read back by huggingface_hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, parse_eval_result_entries
from ruamel.yaml import YAML

from atoll.adapters.peft_files import adapter_digest
from atoll.errors import AdapterInvalid
from atoll.evaluation.card import card_with_scores, eval_results_path, eval_results_yaml, update_cards
from atoll.evaluation.results import MemberResult
from support.answers import make_results, outputs, record
from support.fleets import make_fleet

CARD = """---
# a comment that stays
library_name: peft
base_model: "org/name"
tags: [atoll, lora]
---

# mood

Text with --- in it.

---

The end.
"""


RECORD = record(metrics=("accuracy", "rouge_l"))


@pytest.fixture(scope="module")
def member() -> MemberResult:
    return make_results((RECORD, outputs(10, 100), outputs(75, 100))).members[0]


def test_the_hub_reads_the_scores(member: MemberResult) -> None:
    data: Any = ModelCard(card_with_scores(CARD, member, RECORD)).data
    assert data.model_name == "mood"
    assert data.base_model == "org/name"
    found = [(e.dataset_type, e.dataset_split, e.metric_type, e.metric_value) for e in data.eval_results]
    assert found == [("glue_sst2", "test", "accuracy", 0.75), ("glue_sst2", "test", "rouge_l", 0.75)]
    args = data.eval_results[0].metric_args
    assert args["low"] < 0.75 < args["high"]
    assert args["num_examples"] == 100


def test_all_else_in_the_card_stays_and_new_scores_replace_old_ones(member: MemberResult) -> None:
    once = card_with_scores(CARD, member, RECORD)
    assert "# a comment that stays" in once
    assert once.endswith(CARD.split("---\n", 2)[2])
    assert card_with_scores(once, member, RECORD) == once


@pytest.mark.parametrize("card", ["# mood\n", "", "---\n---\n# mood\n"])
def test_a_card_without_front_matter_gets_one(card: str, member: MemberResult) -> None:
    text = card_with_scores(card, member, RECORD)
    data: Any = ModelCard(text).data
    assert data.eval_results[0].metric_value == 0.75
    assert text.endswith(card.removeprefix("---\n---\n"))


@pytest.mark.parametrize("matter", ["a: [1", "- a list", "just text"])
def test_front_matter_that_is_no_mapping_is_refused(matter: str, member: MemberResult) -> None:
    with pytest.raises(AdapterInvalid, match="front matter"):
        card_with_scores(f"---\n{matter}\n---\n# mood\n", member, RECORD)


def test_the_hub_reads_the_results_of_a_task_on_its_data(member: MemberResult) -> None:
    own = RECORD.model_copy(update={"hub_dataset": "nyu-mll/glue@bcdcba79"})
    text = eval_results_yaml(member, own, created="2026-01-01T00:00:00+00:00")
    (entry,) = parse_eval_result_entries(YAML(typ="safe").load(text))
    assert (entry.dataset_id, entry.dataset_revision, entry.task_id) == ("nyu-mll/glue", "bcdcba79", "glue_sst2")
    assert entry.value == 0.75
    assert str(entry.date).startswith("2026-01-01")
    assert entry.notes is not None
    assert "accuracy on 100 examples" in entry.notes
    data: Any = ModelCard(card_with_scores(CARD, member, own)).data
    assert (data.eval_results[0].dataset_type, data.eval_results[0].dataset_revision) == ("nyu-mll/glue", "bcdcba79")


def test_results_lie_beside_the_card_only_while_the_data_are_the_hubs(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path, num_examples=2)
    adapter = fleet.publish("colors")
    path = eval_results_path(adapter.folder, "colors")
    own = record("colors", adapter_id="colors@1", task="colors")
    for hub_dataset, is_there in (("", False), ("org/colors", True), ("", False)):
        member = own.model_copy(update={"hub_dataset": hub_dataset})
        update_cards(fleet.store, make_results((member, outputs(10, 100), outputs(75, 100))))
        assert path.is_file() == is_there
    assert fleet.store.resolve("colors").digest == adapter.digest
    assert adapter_digest(adapter.folder) == adapter.digest
