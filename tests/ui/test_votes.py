"""Votes are kept line by line, whatever dies, and given back to their tenant as preference data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atoll.engine import FinishEvent
from atoll.engine.request import Timings
from atoll.errors import AtollError, NotFound, Overloaded, RequestInvalid
from atoll.server.caller import Caller
from atoll.server.ui.duels import MAX_DUELS, MAX_KEPT_CHARS, Duels
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
    journal = VoteJournal(tmp_path / "votes")
    assert list(journal.read("acme")) == []
    votes = [vote(), vote(winner="b"), vote(tenant="other"), vote(winner="tie")]
    for one in votes:
        journal.append(one)
    assert list(VoteJournal(tmp_path / "votes").read("acme")) == [votes[0], votes[1], votes[3]]
    assert list(journal.read("other")) == [votes[2]]


def test_a_preference_names_the_chosen_answer_first_and_a_tie_prefers_nothing() -> None:
    preference = vote(winner="b").preference()
    assert preference is not None
    assert (preference["chosen"], preference["rejected"]) == (vote().answers[1], "billing")
    assert (preference["chosen_adapter"], preference["rejected_adapter"]) == ("base", "support")
    assert preference["prompt"] == "Message: Hi"
    assert vote(winner="tie").preference() is None


def test_a_torn_or_damaged_line_costs_no_other_vote(tmp_path: Path) -> None:
    journal = VoteJournal(tmp_path / "votes")
    path = journal.path("acme")
    journal.append(vote(time=1.0))
    with path.open("ab") as file:
        file.write(b'{"tenant": "acme", "wi\n[]\nnull\n"x"\n' + json.dumps({"contenders": [1]}).encode() + b"\n{" * 3)
    journal.append(vote(time=2.0))
    assert [one.time for one in journal.read("acme")] == [1.0, 2.0]


def test_half_a_character_does_not_stop_a_vote(tmp_path: Path) -> None:
    journal = VoteJournal(tmp_path / "votes")
    journal.append(vote(prompt="\ud800"))
    assert [one.prompt for one in journal.read("acme")] == ["\ud800"]


def test_a_full_file_takes_no_more_and_is_its_tenants_alone(tmp_path: Path) -> None:
    journal = VoteJournal(tmp_path / "votes")
    journal.append(vote())
    path = journal.path("acme")
    size = path.stat().st_size
    journal = VoteJournal(tmp_path / "votes", max_file_bytes=2 * size)
    journal.append(vote())
    with pytest.raises(Overloaded, match="no room"):
        journal.append(vote())
    assert path.stat().st_size == 2 * size
    journal.append(vote(tenant="other"))
    assert list(journal.read("other")) == [vote(tenant="other")]


@pytest.mark.parametrize("tenant", ["", "../../etc", "a/b", "x" * 500, "\0", "\ud800"])
def test_no_tenants_name_is_a_path(tmp_path: Path, tenant: str) -> None:
    journal = VoteJournal(tmp_path / "votes")
    journal.append(vote(tenant=tenant))
    assert list(journal.read(tenant)) == [vote(tenant=tenant)]
    assert [path.name for path in tmp_path.iterdir()] == ["votes"]
    assert [path.name for path in (tmp_path / "votes").iterdir()] == [journal.path(tenant).name]


def answered(duels: Duels, caller: Caller, **fields: Any) -> str:
    """The id of a duel that can be voted on."""
    state = TryState(**({"adapter": "support", "contenders": ("support", "base")} | fields))
    duel_id, duel = duels.start(caller, state, "the prompt")
    duel.ends.update({0: end_of("one"), 1: end_of("other")})
    return duel_id


def is_open(duels: Duels, duel_id: str, caller: Caller) -> bool:
    try:
        with duels.voting(duel_id, caller, "a"):
            raise OSError
    except NotFound:
        return False
    except OSError:
        return True


def test_a_duel_is_voted_on_once_by_who_has_started_it_and_only_when_both_have_answered() -> None:
    me, you = Caller(key_id="me", tenant="a"), Caller(key_id="you", tenant="a")
    duels, state = Duels(), TryState(adapter="support", contenders=("support", "base"))
    duel_id, duel = duels.start(me, state, "the prompt")
    duel.ends[0] = end_of("one")
    with pytest.raises(RequestInvalid, match="not both"), duels.voting(duel_id, me, "a"):
        pass
    duel.ends[1] = end_of("other")
    assert not is_open(duels, duel_id, you)
    with duels.voting(duel_id, me, "a") as (_, kept):
        assert not is_open(duels, duel_id, me)  # somebody who sends the vote twice
    assert kept.answers == ("one", "other")
    assert sorted(kept.contenders) == ["base", "support"]
    assert not is_open(duels, duel_id, me)
    with pytest.raises(RequestInvalid, match="two"):
        duels.start(me, TryState(contenders=("a", "b", "c")), "")


def test_a_vote_that_could_not_be_kept_can_be_given_again(tmp_path: Path) -> None:
    duels = Duels()
    duel_id = answered(duels, Caller())
    (tmp_path / "votes").write_text("no folder")
    with pytest.raises(AtollError, match="could not be kept"), duels.voting(duel_id, Caller(), "a") as (_, lost):
        VoteJournal(tmp_path / "votes").append(lost)
    with duels.voting(duel_id, Caller(), "a") as (_, kept):
        VoteJournal(tmp_path / "other").append(kept)
    assert list(VoteJournal(tmp_path / "other").read("")) == [kept]


def test_the_order_of_a_duel_is_left_to_chance() -> None:
    duels, state = Duels(), TryState(contenders=("x", "y"))
    assert {duels.start(Caller(), state, "")[1].contenders for _ in range(64)} == {("x", "y"), ("y", "x")}


def test_old_duels_are_forgotten() -> None:
    now_s = 0.0
    duels = Duels(lambda: now_s)
    duel_ids = [answered(duels, Caller(tenant=tenant)) for tenant in ("a", "b", "c")]
    now_s = 3601.0
    assert not is_open(duels, duel_ids[0], Caller(tenant="a"))
    answered(duels, Caller(tenant="a"))
    assert len(duels) == 1


def test_a_tenant_with_many_duels_ends_its_own_oldest_ones_alone() -> None:
    me, you = Caller(tenant="me"), Caller(tenant="you")
    duels = Duels()
    yours = answered(duels, you)
    mine = [answered(duels, me) for _ in range(2000)]
    assert len(duels) == MAX_DUELS + 1
    assert is_open(duels, yours, you)
    assert [is_open(duels, duel_id, me) for duel_id in mine] == [False] * (2000 - MAX_DUELS) + [True] * MAX_DUELS


@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": {"text": "x" * MAX_KEPT_CHARS}},
        {"inputs": {"x" * MAX_KEPT_CHARS: ""}},
        {"adapter": "x" * MAX_KEPT_CHARS},
        {"contenders": ("base", "x" * MAX_KEPT_CHARS)},
    ],
)
def test_what_a_duel_keeps_is_bounded(fields: dict[str, Any]) -> None:
    duels = Duels()
    with pytest.raises(RequestInvalid, match="too long"):
        answered(duels, Caller(), **fields)
    with pytest.raises(RequestInvalid, match="too long"):
        duels.start(Caller(), TryState(contenders=("x", "y")), "x" * MAX_KEPT_CHARS)
    assert len(duels) == 0
