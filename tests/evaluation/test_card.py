"""Scores in model cards, read back by huggingface_hub."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from atoll.errors import AdapterInvalid
from atoll.evaluation.card import card_with_scores
from atoll.evaluation.results import MemberResult
from support.answers import make_results, outputs, record

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


@pytest.fixture(scope="module")
def member() -> MemberResult:
    return make_results((record(metrics=("accuracy", "rouge_l")), outputs(10, 100), outputs(75, 100))).members[0]


def test_the_hub_reads_the_scores(member: MemberResult) -> None:
    data: Any = ModelCard(card_with_scores(CARD, member, split="test")).data
    assert data.model_name == "mood"
    assert data.base_model == "org/name"
    found = [(e.dataset_type, e.dataset_split, e.metric_type, e.metric_value) for e in data.eval_results]
    assert found == [("glue_sst2", "test", "accuracy", 0.75), ("glue_sst2", "test", "rouge_l", 0.75)]
    args = data.eval_results[0].metric_args
    assert args["low"] < 0.75 < args["high"]
    assert args["num_examples"] == 100


def test_all_else_in_the_card_stays_and_new_scores_replace_old_ones(member: MemberResult) -> None:
    once = card_with_scores(CARD, member, split="test")
    assert "# a comment that stays" in once
    assert once.endswith(CARD.split("---\n", 2)[2])
    assert card_with_scores(once, member, split="test") == once


@pytest.mark.parametrize("card", ["# mood\n", "", "---\n---\n# mood\n"])
def test_a_card_without_front_matter_gets_one(card: str, member: MemberResult) -> None:
    text = card_with_scores(card, member, split="test")
    data: Any = ModelCard(text).data
    assert data.eval_results[0].metric_value == 0.75
    assert text.endswith(card.removeprefix("---\n---\n"))


@pytest.mark.parametrize("matter", ["a: [1", "- a list", "just text"])
def test_front_matter_that_is_no_mapping_is_refused(matter: str, member: MemberResult) -> None:
    with pytest.raises(AdapterInvalid, match="front matter"):
        card_with_scores(f"---\n{matter}\n---\n# mood\n", member, split="test")
