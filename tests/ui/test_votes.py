"""Votes are kept line by line, whatever dies, and given back to their tenant as preference data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atoll.engine import FinishEvent
from atoll.engine.request import Timings
from atoll.errors import NotFound, Overloaded, RequestInvalid
from atoll.server.caller import Caller
from atoll.server.ui.duels import Duels
from atoll.server.ui.try_state import TryState
from atoll.server.ui.votes import Vote, VoteJournal


def vote(**fields: Any) -> Vote:
    given: dict[str, Any] = {
        "tenant": "acme",
        "key_id": "k",
        "time": 1.5,
        "adapter": "support",
        "inputs": {"message": "Hi"},
        "prompt": "Message: Hi",
        "contenders": ("support", "base"),
        "answers": ("billing", "I am\u2028 a model <script>"),
        "winner": "a",
    }
    return Vote(**(given | fields))


def end_of(text: str) -> FinishEvent:
    return FinishEvent(
        request_id="r",
        finish_reason="stop",
        stop_reason="eos",
        text=text,
        token_ids=(1,),
        num_prompt_tokens=1,
        seed=None,
        timings=Timings(queue_s=0.0, first_token_s=0.1, total_s=0.2),
    )


def test_votes_come_back_to_their_tenant_alone(tmp_path: Path) -> None:
    journal = VoteJournal(tmp_path / "votes.jsonl")
    assert list(journal.read("acme")) == []
    votes = [vote(), vote(winner="b"), vote(tenant="other"), vote(winner="tie")]
    for one in votes:
        journal.append(one)
    assert list(VoteJournal(tmp_path / "votes.jsonl").read("acme")) == [votes[0], votes[1], votes[3]]
    assert list(journal.read("other")) == [votes[2]]


def test_a_preference_names_the_chosen_answer_first_and_a_tie_prefers_nothing() -> None:
    preference = vote(winner="b").preference()
    assert preference is not None
    assert (preference["chosen"], preference["rejected"]) == (vote().answers[1], "billing")
    assert (preference["chosen_adapter"], preference["rejected_adapter"]) == ("base", "support")
    assert preference["prompt"] == "Message: Hi"
    assert vote(winner="tie").preference() is None


def test_a_torn_or_damaged_line_costs_no_other_vote(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    journal = VoteJournal(path)
    journal.append(vote(time=1.0))
    with path.open("ab") as file:
        file.write(b'{"tenant": "acme", "wi\n[]\nnull\n"x"\n' + json.dumps({"contenders": [1]}).encode() + b"\n{" * 3)
    journal.append(vote(time=2.0))
    assert [one.time for one in journal.read("acme")] == [1.0, 2.0]


def test_half_a_character_does_not_stop_a_vote(tmp_path: Path) -> None:
    journal = VoteJournal(tmp_path / "votes.jsonl")
    journal.append(vote(prompt="\ud800"))
    assert [one.prompt for one in journal.read("acme")] == ["\ud800"]


def test_a_full_file_takes_no_more(tmp_path: Path) -> None:
    VoteJournal(tmp_path / "votes.jsonl").append(vote())
    size = (tmp_path / "votes.jsonl").stat().st_size
    journal = VoteJournal(tmp_path / "votes.jsonl", max_file_bytes=2 * size)
    journal.append(vote())
    with pytest.raises(Overloaded, match="no room"):
        journal.append(vote())
    assert (tmp_path / "votes.jsonl").stat().st_size == 2 * size


def test_a_duel_is_voted_on_once_by_who_has_started_it_and_only_when_both_have_answered() -> None:
    me, you = Caller(key_id="me", tenant="a"), Caller(key_id="you", tenant="a")
    duels, state = Duels(), TryState(adapter="support", contenders=("support", "base"))
    duel_id, duel = duels.start(me, state, "the prompt")
    duel.ends[0] = end_of("one")
    with pytest.raises(RequestInvalid, match="not both"):
        duels.vote(duel_id, me, "a")
    duel.ends[1] = end_of("other")
    with pytest.raises(NotFound):
        duels.vote(duel_id, you, "a")
    _, kept = duels.vote(duel_id, me, "a")
    assert kept.answers == ("one", "other")
    assert sorted(kept.contenders) == ["base", "support"]
    with pytest.raises(NotFound):
        duels.vote(duel_id, me, "a")
    with pytest.raises(RequestInvalid, match="two"):
        duels.start(me, TryState(contenders=("a", "b", "c")), "")


def test_the_order_of_a_duel_is_left_to_chance() -> None:
    duels, state = Duels(), TryState(contenders=("x", "y"))
    assert {duels.start(Caller(), state, "")[1].contenders for _ in range(64)} == {("x", "y"), ("y", "x")}


def test_old_duels_are_forgotten() -> None:
    now_s = 0.0
    duels = Duels(lambda: now_s)
    duel_id, duel = duels.start(Caller(), TryState(contenders=("x", "y")), "")
    duel.ends.update({0: end_of("a"), 1: end_of("b")})
    now_s = 3601.0
    with pytest.raises(NotFound):
        duels.vote(duel_id, Caller(), "a")
