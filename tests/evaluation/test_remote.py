"""A provider that misbehaves: every request ends in an answer, in a counted failure, or in a reason to stop."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from atoll.errors import AtollError, Forbidden, NotFound, OverBudget, Unauthorized, Unavailable, UsageError
from atoll.evaluation.contenders import Remote
from atoll.evaluation.journal import Entry, Journal
from atoll.evaluation.remote import retry_after_s
from atoll.evaluation.remote_call import RemoteCall, RetryPolicy
from atoll.evaluation.remote_pool import MAX_FAILURES_BEFORE_ANSWER, ask_all
from atoll.evaluation.spending import RemoteOptions, Spending, TokenRate
from support.providers import Behaviour, FakeProvider, cuts_body, drops, fails, fake_provider, says, sends

POLICY = RetryPolicy(max_attempts=3, first_delay_s=0.01, max_delay_s=0.02, timeout_s=10)
RATE = TokenRate(1.0, 10.0)


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ATOLL_REMOTE_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with fake_provider() as provider:
        yield provider


def call(number: int, **fields: Any) -> RemoteCall:
    defaults: dict[str, Any] = {
        "key": f"key {number}",
        "prompt": ({"role": "user", "content": f"question {number}"},),
        "max_new_tokens": 6,
        "stop": (),
        "num_prompt_tokens": 4,
    }
    return RemoteCall(**defaults | fields)


def ask(
    provider: FakeProvider,
    folder: Path,
    calls: list[RemoteCall],
    *,
    rate: TokenRate | None = RATE,
    max_usd: float | None = None,
    concurrency: int = 1,
    policy: RetryPolicy = POLICY,
) -> tuple[dict[str, Entry], Spending]:
    spending = Spending(max_usd)
    with Journal(folder) as journal:
        entries = ask_all(
            Remote("some-model", provider.url),
            calls,
            rate=rate,
            spending=spending,
            journal=journal,
            options=RemoteOptions(concurrency=concurrency, policy=policy),
            on_answer=lambda num_done: None,
        )
    return entries, spending


@pytest.mark.parametrize(
    "trouble",
    [
        fails(429, headers={"Retry-After": "0"}),
        fails(429),
        fails(500),
        fails(502),
        fails(503, headers={"Retry-After": "nonsense"}),
        cuts_body,
        drops,
        sends(b"{"),
        sends(b"[]"),
        sends(b"<html>gateway</html>"),
        sends(b'{"choices": []}'),
        sends(b'{"choices": [{"message": {"content": ["\\ud800"]}}]}'),
        sends(b'{"choices": [{"text": "x"}], "usage": {"prompt_tokens": NaN, "completion_tokens": -1}}'),
    ],
)
def test_trouble_that_passes_ends_in_an_answer(provider: FakeProvider, tmp_path: Path, trouble: Behaviour) -> None:
    provider.script = [trouble, trouble]
    entries, _ = ask(provider, tmp_path, [call(1)])
    entry = entries["key 1"]
    assert (entry.prediction, entry.error, entry.finish_reason) == ("label 1", None, "stop")
    assert (entry.num_prompt_tokens, entry.num_new_tokens) == (20, 3)
    assert len(provider.asked) == 3


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (fails(429), "status 429"),
        (fails(500, "it is on fire"), "it is on fire"),
        (cuts_body, "connection failed"),
        (sends(b"{"), "not what the interface promises"),
        (sends(b'{"choices": []}'), "no choice"),
    ],
)
def test_trouble_that_stays_is_a_counted_failure_and_is_asked_again_next_time(
    provider: FakeProvider, tmp_path: Path, trouble: Behaviour, said: str
) -> None:
    provider.script = [trouble] * POLICY.max_attempts
    entries, _ = ask(provider, tmp_path, [call(1), call(2)])
    assert said in str(entries["key 1"].error)
    assert "attempt 3 of 3" in str(entries["key 1"].error)
    assert entries["key 2"].prediction == "label 1"
    with Journal(tmp_path) as journal:
        assert journal.get("key 1") is None
        assert journal.get("key 2") == entries["key 2"]


def test_a_time_out_is_tried_again(provider: FakeProvider, tmp_path: Path) -> None:
    provider.script = [provider.hangs]
    policy = RetryPolicy(max_attempts=2, first_delay_s=0.01, timeout_s=0.5)
    entries, spending = ask(provider, tmp_path, [call(1)], policy=policy)
    assert entries["key 1"].prediction == "label 1"
    # What never came may be on the bill: its worst price counts for the cap.
    assert spending.spent_usd == pytest.approx(RATE.worst_usd(call(1)) + RATE.cost_usd(entries["key 1"]))
    with Journal(tmp_path) as journal:
        assert journal.lost_usd(["key 1"]) == pytest.approx(RATE.worst_usd(call(1)))


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (says(None), "no text"),
        (says("x" * 100_000), "much longer than the 6 tokens"),
    ],
)
def test_an_answer_that_is_none_is_a_failure_that_was_paid_and_is_not_asked_again(
    provider: FakeProvider, tmp_path: Path, behaviour: Behaviour, said: str
) -> None:
    provider.script = [behaviour]
    entries, spending = ask(provider, tmp_path, [call(1)])
    assert said in str(entries["key 1"].error)
    assert entries["key 1"].prediction == ""
    assert spending.spent_usd > 0
    assert len(provider.asked) == 1
    with Journal(tmp_path) as journal:
        assert journal.get("key 1") == entries["key 1"]


def test_an_empty_answer_is_an_answer(provider: FakeProvider, tmp_path: Path) -> None:
    provider.script = [says("")]
    entries, _ = ask(provider, tmp_path, [call(1)])
    assert (entries["key 1"].prediction, entries["key 1"].error) == ("", None)


def test_a_refused_prompt_is_a_counted_failure_and_the_others_go_on(provider: FakeProvider, tmp_path: Path) -> None:
    provider.script = [fails(400, "too long; your key sk-0123456789abcdef0123 is fine")]
    entries, spending = ask(provider, tmp_path, [call(1), call(2)])
    assert "too long" in str(entries["key 1"].error)
    assert "sk-0123456789abcdef" not in str(entries["key 1"].error)
    assert entries["key 2"].error is None
    assert spending.spent_usd == pytest.approx(RATE.cost_usd(entries["key 2"]))


@pytest.mark.parametrize(
    ("behaviour", "kind", "said"),
    [
        (fails(401), Unauthorized, "does not let us in"),
        (fails(403), Forbidden, "does not let us in"),
        (fails(404), NotFound, "there is no some-model"),
        (fails(429, code="insufficient_quota"), Unavailable, "no credit left"),
        (fails(429, headers={"Retry-After": "86400"}), Unavailable, "does not answer now"),
    ],
)
def test_what_no_request_would_survive_stops_the_run_and_keeps_the_answers(
    provider: FakeProvider, tmp_path: Path, behaviour: Behaviour, kind: type[AtollError], said: str
) -> None:
    provider.script = [says("label 2"), behaviour]
    with pytest.raises(kind, match=said):
        ask(provider, tmp_path, [call(number) for number in range(9)])
    assert len(provider.asked) == 2
    with Journal(tmp_path) as journal:
        assert journal.get("key 0") is not None


def test_a_provider_that_answers_nobody_is_given_up(provider: FakeProvider, tmp_path: Path) -> None:
    provider.usual = fails(400, "temperature is not supported")
    with pytest.raises(Unavailable, match="has answered none") as caught:
        ask(provider, tmp_path, [call(number) for number in range(100)])
    assert "temperature is not supported" in str(caught.value)
    assert len(provider.asked) == MAX_FAILURES_BEFORE_ANSWER


def test_ctrl_c_ends_the_requests_under_way_and_keeps_the_answers(provider: FakeProvider, tmp_path: Path) -> None:
    def interrupts(handler: Any, body: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        provider.hangs(handler, body)

    provider.script = [says("label 2"), interrupts]
    with pytest.raises(KeyboardInterrupt):
        ask(provider, tmp_path, [call(number) for number in range(9)])
    assert len(provider.asked) == 2
    with Journal(tmp_path) as journal:
        assert journal.get("key 0") is not None


def test_what_is_sent(provider: FakeProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-for-strangers")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-never-for-strangers")
    ask(provider, tmp_path, [call(1, stop=tuple("abcdef"))])
    monkeypatch.setenv("ATOLL_REMOTE_KEY", "a-key")
    ask(provider, tmp_path, [call(2, prompt="just text")])
    first, second = provider.asked
    assert first == {
        "model": "some-model",
        "messages": [{"role": "user", "content": "question 1"}],
        "temperature": 0,
        "max_tokens": 6,
        "stop": list("abcd"),
    }
    assert second == {"model": "some-model", "prompt": "just text", "temperature": 0, "max_tokens": 6}
    assert provider.paths == ["/v1/chat/completions", "/v1/completions"]
    assert "authorization" not in provider.headers[0]
    assert "strangers" not in str(provider.headers)
    assert provider.headers[1]["authorization"] == "Bearer a-key"


def test_openai_itself_is_asked_with_its_own_key(
    provider: FakeProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="no key for openai:gpt-4o"):
        Remote("gpt-4o").key()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
    with Journal(tmp_path) as journal:
        ask_all(
            Remote("gpt-4o"),
            [call(1)],
            rate=None,
            spending=Spending(),
            journal=journal,
            options=RemoteOptions(policy=POLICY),
            on_answer=lambda num_done: None,
        )
    assert provider.asked[0]["max_completion_tokens"] == 6
    assert provider.headers[0]["authorization"] == "Bearer sk-mine"


def test_stop_strings_that_were_not_sent_end_the_answer_all_the_same(provider: FakeProvider, tmp_path: Path) -> None:
    provider.script = [says("one f two e three")]
    entries, _ = ask(provider, tmp_path, [call(1, stop=("1", "2", "3", "4", " e", " f"))])
    assert (entries["key 1"].prediction, entries["key 1"].finish_reason) == ("one", "stop")


def test_another_model_than_the_wanted_one_is_noted(provider: FakeProvider, tmp_path: Path) -> None:
    provider.script = [says("label 1", model="a-smaller-one")]
    entries, _ = ask(provider, tmp_path, [call(1)])
    assert entries["key 1"].model == "a-smaller-one"


def test_without_a_count_of_tokens_the_most_is_assumed(provider: FakeProvider, tmp_path: Path) -> None:
    provider.script = [sends(json.dumps({"choices": [{"message": {"content": "x"}}]}).encode())]
    entries, _ = ask(provider, tmp_path, [call(1)])
    assert (entries["key 1"].num_prompt_tokens, entries["key 1"].num_new_tokens) == (4, 6)


def test_no_more_requests_at_once_than_allowed_and_every_answer_belongs_to_its_question(
    provider: FakeProvider, tmp_path: Path
) -> None:
    def echo(handler: Any, body: dict[str, Any]) -> None:
        says(body["messages"][0]["content"])(handler, body)

    provider.usual = echo
    calls = [call(number, max_new_tokens=20) for number in range(40)]
    entries, _ = ask(provider, tmp_path, calls, concurrency=4)
    assert provider.max_at_once <= 4
    assert {key: entry.prediction for key, entry in entries.items()} == {
        f"key {number}": f"question {number}" for number in range(40)
    }


@pytest.mark.parametrize("concurrency", [1, 7])
def test_the_cap_holds_whatever_runs_beside_each_other(
    provider: FakeProvider, tmp_path: Path, concurrency: int
) -> None:
    calls = [call(number) for number in range(50)]
    worst = RATE.worst_usd(calls[0])
    # The provider counts as many tokens as it possibly can.
    most = {"prompt_tokens": calls[0].max_prompt_tokens, "completion_tokens": 6}
    provider.usual = says("label 1", usage=most)
    max_usd = 10.5 * worst
    with pytest.raises(OverBudget, match="spending cap is reached") as caught:
        ask(provider, tmp_path, calls, max_usd=max_usd, concurrency=concurrency)
    assert len(provider.asked) == 10
    assert caught.value.exit_code == 6
    with Journal(tmp_path) as journal:
        kept = [entry for one in calls if (entry := journal.get(one.key))]
    assert len(kept) == 10
    assert sum(entry.cost_usd or 0 for entry in kept) <= max_usd


def test_answers_that_cost_less_than_feared_make_room_for_others(provider: FakeProvider, tmp_path: Path) -> None:
    calls = [call(number) for number in range(12)]
    cost = RATE.cost_usd(Entry(key="", num_prompt_tokens=20, num_new_tokens=3))
    entries, spending = ask(provider, tmp_path, calls, max_usd=12 * cost + RATE.worst_usd(calls[0]), concurrency=6)
    assert len(entries) == 12
    assert spending.spent_usd == pytest.approx(12 * cost)


def test_waits_double_up_to_a_limit_and_keep_to_what_the_provider_asks() -> None:
    policy = RetryPolicy(first_delay_s=1, max_delay_s=8)
    assert [policy.delay_s(attempt, None, 1.0) for attempt in range(5)] == [1, 2, 4, 8, 8]
    assert [policy.delay_s(attempt, None, 0.0) for attempt in range(2)] == [0.5, 1.0]
    assert policy.delay_s(0, 20.0, 0.0) == 20.0
    assert policy.delay_s(0, 20.0, 0.5) == 20.5


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-4", 0.0),
        ("Thu, 01 Jan 2026 00:00:10 GMT", 10.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_when_to_come_back(text: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": text}, datetime(2026, 1, 1, tzinfo=UTC)) == seconds
