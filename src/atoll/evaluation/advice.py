"""Should this task be tuned at all? One sentence, from how the adapter stands against what costs less than tuning.

The rules, in this order:

1. Fewer than MIN_EXAMPLES test examples say nothing.
2. What costs less than an adapter (majority class, nearest neighbour, the bare base, the base with examples in its
   prompt) is *as good* if it beats the adapter, or if the interval of the adapter's lift over it ends at or below
   MARGIN. Of those that are as good, the cheapest one that scores within MARGIN of the best of them is to be used.
3. Where the test tells the adapter from one of the others in neither way, more test examples are needed.
4. Else the adapter is worth having, by its lift over the best of them; a remote model that beats it is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from atoll.evaluation.outputs import ADAPTER, ContenderKind, Part
from atoll.evaluation.scores import MetricResult

MIN_EXAMPLES = 50
MARGIN = 0.02  # what an adapter must add to be worth its upkeep
_CHEAPEST_FIRST: tuple[ContenderKind, ...] = ("majority", "nearest", "base", "few_shot")
_INSTEAD: dict[ContenderKind, str] = {
    "majority": "always giving the most frequent answer does {}: get other data before tuning",
    "nearest": "looking up the most similar training example does {}: use a lookup",
    "base": "the bare base does {}: use it as it is",
    "few_shot": "the base with examples in its prompt does {}: prompt it",
}
_NAMED: dict[ContenderKind, str] = {
    "majority": "the most frequent answer",
    "nearest": "a lookup of the most similar training example",
    "base": "the bare base",
    "few_shot": "the base with examples in its prompt",
}


class Advice(Part):
    """What to do about one task. contender: the one to use instead, or the one that could not be told apart."""

    kind: Literal["tune", "use_other", "undecided", "too_few"]
    contender: str | None
    sentence: str


def advise(primary: MetricResult, kinds: Mapping[str, ContenderKind], num_examples: int) -> Advice:
    """Apply the rules above. kinds: of every contender in `primary`, of which the bare base is one."""
    if num_examples < MIN_EXAMPLES:
        sentence = f"{num_examples} test examples are too few to say; use at least {MIN_EXAMPLES}"
        return Advice(kind="too_few", contender=None, sentence=sentence)
    cheaper = [name for kind in _CHEAPEST_FIRST for name in primary.against if kinds[name] == kind]
    if as_good := [name for name in cheaper if _is_as_good(primary, name)]:
        enough = max(_value(primary, name) for name in as_good) - MARGIN
        return _use_other(primary, next(name for name in as_good if _value(primary, name) >= enough), kinds)
    if unclear := [name for name in cheaper if primary.against[name].verdict == "no difference shown"]:
        return _undecided(primary, max(unclear, key=lambda name: _value(primary, name)), kinds)
    return _tune(primary, cheaper, kinds)


def _is_as_good(primary: MetricResult, name: str) -> bool:
    comparison = primary.against[name]
    return comparison.verdict == "loses to" or comparison.lift.high <= MARGIN


def _use_other(primary: MetricResult, name: str, kinds: Mapping[str, ContenderKind]) -> Advice:
    how = "better" if primary.against[name].verdict == "loses to" else "as well"
    figures = f"{how} ({_value(primary, name):.3f}, adapter {_value(primary, ADAPTER):.3f})"
    sentence = f"do not tune: {_INSTEAD[kinds[name]].format(figures)}"
    return Advice(kind="use_other", contender=name, sentence=sentence)


def _undecided(primary: MetricResult, name: str, kinds: Mapping[str, ContenderKind]) -> Advice:
    who = _NAMED[kinds[name]]
    sentence = f"not shown: the adapter's lift over {who} is {_lift(primary, name)}; score more test examples"
    return Advice(kind="undecided", contender=name, sentence=sentence)


def _tune(primary: MetricResult, cheaper: list[str], kinds: Mapping[str, ContenderKind]) -> Advice:
    best = max(cheaper, key=lambda name: _value(primary, name))
    sentence = f"tune: the adapter beats {_NAMED[kinds[best]]}, the best of the others, by {_lift(primary, best)}"
    better = [
        f"{name} is better by {-comparison.lift.value:.3f}"
        for name, comparison in primary.against.items()
        if kinds[name] == "remote" and comparison.verdict == "loses to"
    ]
    return Advice(kind="tune", contender=None, sentence="; ".join([sentence, *better]))


def _value(primary: MetricResult, name: str) -> float:
    return primary.scores[name].value


def _lift(primary: MetricResult, name: str) -> str:
    lift = primary.against[name].lift
    return f"{lift.value:+.3f} [{lift.low:+.3f}, {lift.high:+.3f}]"
