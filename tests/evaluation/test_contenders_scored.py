"""Results with any contenders: comparisons, claims over a fleet, costs, labels, and what is refused."""

from __future__ import annotations

import pytest

from atoll.config.task import PUBLISHED_NAMES, PublishedScores
from atoll.errors import DataError
from atoll.evaluation.outputs import ADAPTER, BASE, Output
from atoll.evaluation.report import markdown, summary_lines, terminal_table
from atoll.evaluation.report_cells import total_cost
from support.answers import contender, make_results, output, outputs, record, score_all

CONTENDERS = (
    contender(BASE, "base", cost_usd=0.5, seconds=2.0, num_prompt_tokens=10, num_new_tokens=20),
    contender("few-shot-3", "few_shot", detail="3 examples", cost_usd=0.25),
    contender("openai-gpt-4o", "remote", detail="gpt-4o", cost_usd=None),
    contender(ADAPTER, "adapter", cost_usd=0.125),
)


def answers(**num_right: int) -> dict[str, list[Output]]:
    names = {"few_shot": "few-shot-3", "gpt": "openai-gpt-4o"}
    return {names.get(name, name): outputs(number, 100) for name, number in num_right.items()}


def test_the_adapter_is_compared_with_every_contender_on_the_same_examples() -> None:
    found = answers(base=20, few_shot=88, gpt=99, adapter=90)
    results = score_all((record(contenders=CONTENDERS), found))
    against = results.members[0].primary.against
    assert {name: comparison.verdict for name, comparison in against.items()} == {
        "base": "beats",
        "few-shot-3": "no difference shown",
        "openai-gpt-4o": "loses to",
    }
    assert results.contenders == (BASE, "few-shot-3", "openai-gpt-4o", ADAPTER)
    text = markdown(results)
    assert "| loses to openai-gpt-4o |" in text
    assert "| beats openai-gpt-4o |" not in text
    headings = [str(column.header) for column in terminal_table(results).columns]
    assert headings[4:8] == ["base", "few-shot-3", "openai-gpt-4o", "tuned"]


def test_a_contender_that_only_some_members_have_is_a_gap_and_no_error() -> None:
    results = score_all(
        (record("one", contenders=CONTENDERS), answers(base=20, gpt=99, adapter=90)),
        (record("two"), answers(base=20, adapter=90)),
    )
    claims = {claim.contender: (claim.beats, claim.loses, len(claim.p_values)) for claim in results.claims}
    assert claims == {BASE: (("one", "two"), (), 2), "openai-gpt-4o": ((), ("one",), 1)}
    row = next(line for line in markdown(results).splitlines() if line.startswith("| two |"))
    assert "| – |" in row


def test_what_passes_alone_by_a_hair_is_no_claim_of_a_whole_fleet() -> None:
    members = [(record(f"task{i}"), answers(base=50, adapter=57)) for i in range(20)]
    results = score_all(*members)
    alone = results.members[0].primary.against[BASE]
    assert alone.verdict == "beats"
    assert 0.05 / 20 < alone.p_value < 0.05
    assert results.claims[0].beats == ()
    assert "0 of 20 adapters beat base" in "\n".join(summary_lines(results))
    few = score_all(*members[:1])
    assert few.claims[0].beats == ("task0",)


def test_costs_add_up_over_the_fleet_and_an_unknown_price_stays_unknown() -> None:
    member = record(contenders=CONTENDERS)
    found = answers(base=20, few_shot=88, gpt=99, adapter=90)
    other = record("other", contenders=CONTENDERS)
    totals = total_cost(score_all((member, found), (other, found)))
    assert {name: total.cost_usd for name, total in totals.items()} == {
        BASE: 1.0,
        "few-shot-3": 0.5,
        "openai-gpt-4o": None,
        ADAPTER: 0.25,
    }
    assert (totals[BASE].seconds, totals[BASE].num_new_tokens) == (4.0, 40)


def test_answers_outside_the_labels_are_counted_and_are_no_failures() -> None:
    base = [output("Yes.", "yes", 0), output("well, yes", "yes", 1), output("", "no", 2), output("NO", "no", 3)]
    tuned = [output("yes", "yes", i) for i in range(4)]
    (member,) = make_results((record(labels=("yes", "no"), num_examples=4), base, tuned)).members
    assert member.num_outside_labels == {BASE: 2, ADAPTER: 0}
    assert member.failures == ()
    (free,) = make_results((record(num_examples=4), base, tuned)).members
    assert free.num_outside_labels == {}


def test_every_published_column_is_held_against_the_adapter() -> None:
    scores = dict.fromkeys(PUBLISHED_NAMES, 0.5)
    published = PublishedScores.model_validate({"metric": "accuracy", "source": "a paper", **scores})
    results = make_results((record(published=published), outputs(10, 100), outputs(90, 100)))
    assert [item.contender for item in results.members[0].published_comparisons] == list(PUBLISHED_NAMES)
    assert "GPT-4's published scores: the adapter's interval lies above on 1 of 1 tasks" in markdown(results)


def test_answers_to_other_examples_are_refused() -> None:
    for wrong in (outputs(5, 9), outputs(5, 10)[::-1]):
        with pytest.raises(DataError, match="not answered the same examples"):
            make_results((record(num_examples=10), wrong, outputs(5, 10)))
    with pytest.raises(DataError, match="not answered the same examples"):
        score_all((record(), {ADAPTER: outputs(5, 10)}))
    with pytest.raises(DataError, match="no record of the contender 'majority'"):
        score_all((record(), {**answers(base=1, adapter=2), "majority": outputs(3, 100)}))
