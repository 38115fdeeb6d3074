"""Whether to tune at all: each rule, from scores of contenders."""

from __future__ import annotations

import pytest

from atoll.evaluation.advice import MIN_EXAMPLES, advise
from atoll.evaluation.outputs import ADAPTER, BASE, ContenderKind
from atoll.evaluation.scores import MetricResult
from support.answers import contender, make_results, outputs, record, score_all

KINDS: dict[str, ContenderKind] = {
    ADAPTER: "adapter",
    BASE: "base",
    "majority": "majority",
    "nearest": "nearest",
    "few-shot-3": "few_shot",
    "gpt": "remote",
}


def primary(num_examples: int = 200, **num_right: int) -> MetricResult:
    """Real comparisons of made-up answers; the first `num_right` answers of each contender are right."""
    names = {"few_shot": "few-shot-3"}
    answers = {names.get(name, name): outputs(number, num_examples) for name, number in num_right.items()}
    member = record(num_examples=num_examples, contenders=[contender(name, KINDS[name]) for name in answers])
    return score_all((member, answers)).members[0].primary


@pytest.mark.parametrize(
    ("num_right", "kind", "contender_name", "says"),
    [
        ({"base": 20, "majority": 100, "nearest": 90, "few_shot": 60, "adapter": 180}, "tune", None, "by +0.400"),
        ({"base": 20, "majority": 180, "nearest": 90, "adapter": 120}, "use_other", "majority", "does better (0.900"),
        ({"base": 20, "majority": 120, "adapter": 120}, "use_other", "majority", "other data"),
        ({"base": 20, "majority": 60, "nearest": 180, "adapter": 180}, "use_other", "nearest", "use a lookup"),
        ({"base": 180, "majority": 60, "nearest": 90, "adapter": 180}, "use_other", "base", "use it as it is"),
        ({"base": 20, "few_shot": 180, "majority": 60, "adapter": 180}, "use_other", "few-shot-3", "prompt it"),
        ({"base": 20, "majority": 176, "adapter": 180}, "undecided", "majority", "score more test examples"),
    ],
)
def test_each_rule_says_what_to_do(num_right: dict[str, int], kind: str, contender_name: str | None, says: str) -> None:
    advice = advise(primary(**num_right), KINDS, num_examples=200)
    assert (advice.kind, advice.contender) == (kind, contender_name)
    assert says in advice.sentence


def test_of_two_that_are_as_good_the_better_one_is_named_unless_the_cheaper_is_close() -> None:
    far = advise(primary(base=20, majority=60, few_shot=180, adapter=50), KINDS, num_examples=200)
    assert far.contender == "few-shot-3"
    close = advise(primary(base=20, majority=178, few_shot=180, adapter=50), KINDS, num_examples=200)
    assert close.contender == "majority"


def test_a_remote_model_that_is_better_is_named_and_does_not_forbid_tuning() -> None:
    advice = advise(primary(base=20, majority=60, gpt=190, adapter=150), KINDS, num_examples=200)
    assert advice.kind == "tune"
    assert "gpt is better by 0.200" in advice.sentence
    worse = advise(primary(base=20, majority=60, gpt=100, adapter=150), KINDS, num_examples=200)
    assert "gpt" not in worse.sentence


def test_few_examples_say_nothing_however_clear_they_look() -> None:
    number = MIN_EXAMPLES - 1
    advice = advise(primary(number, base=0, adapter=number), KINDS, num_examples=number)
    assert advice.kind == "too_few"


def test_the_advice_is_part_of_the_results() -> None:
    results = make_results((record(), outputs(20, 100), outputs(90, 100)))
    assert results.members[0].advice.kind == "tune"
