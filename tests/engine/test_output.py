"""Text, stop strings and ends of one completion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.engine import Request, SamplingParams, TokenEvent
from atoll.engine.output import Output, StopCutter
from atoll.engine.sampler import Sample
from support.tiny import make_tokenizer

TOKENIZER = make_tokenizer()
END = TOKENIZER.eos_token_id


def make_output(**sampling: object) -> Output:
    params = SamplingParams(**{"max_new_tokens": 100} | sampling)  # type: ignore[arg-type]
    return Output(Request(prompt_ids=(5,), sampling=params, request_id="r"), TOKENIZER, frozenset([END]), 0.0)


def push_all(output: Output, token_ids: list[int]) -> list[TokenEvent]:
    events = []
    for token_id in token_ids:
        events.append(output.push(Sample(token_id, -1.0, ())))
        if output.finish_reason:
            break
    return events


@given(
    text=st.text("ab", max_size=30), stop=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3), data=st.data()
)
def test_the_cutter_gives_all_text_before_the_first_stop_and_nothing_after(
    text: str, stop: list[str], data: st.DataObject
) -> None:
    cutter = StopCutter(tuple(stop))
    given_text, rest = "", text
    while rest and not cutter.is_stopped:
        size = data.draw(st.integers(1, len(rest)))
        given_text += cutter.push(rest[:size])
        rest = rest[size:]
        assert all(end not in given_text for end in stop)
    given_text += cutter.flush()
    seen = text[: len(text) - len(rest)]
    places = [place for end in stop if (place := seen.find(end)) >= 0]
    assert cutter.is_stopped == bool(places)
    assert given_text == (seen[: min(places)] if places else seen)


def test_the_cutter_holds_back_no_more_than_it_must() -> None:
    cutter = StopCutter(("</s>", "\n\n"))
    assert cutter.push("a <b") == "a <b"
    assert cutter.push("> <") == "> "
    assert cutter.push("/s") == ""
    assert cutter.push("t") == "</st"
    assert cutter.push("\n") == ""
    assert cutter.push("x\n") == "\nx"
    assert cutter.push("\nmore") == ""
    assert cutter.is_stopped


def test_a_stop_string_over_several_tokens() -> None:
    output = make_output(stop=("answer ",))
    ids = TOKENIZER.encode("the answer text", add_special_tokens=False)
    events = push_all(output, ids)
    finish = output.finish()
    assert "".join(event.text for event in events) == finish.text == "the "
    assert (finish.finish_reason, finish.stop_reason) == ("stop", "stop_string")
    assert finish.token_ids == tuple(ids[: len(events)])


def test_an_end_token_ends_and_shows_no_text() -> None:
    output = make_output()
    ids = TOKENIZER.encode("label", add_special_tokens=False)
    events = push_all(output, [*ids, END, *ids])
    finish = output.finish()
    assert events[-1].token_id == END
    assert events[-1].text == ""
    assert (finish.text, finish.finish_reason, finish.stop_reason) == ("label", "stop", "eos")
    assert finish.token_ids == (*ids, END)


def test_ignore_eos_goes_on_until_the_length() -> None:
    output = make_output(ignore_eos=True, max_new_tokens=3)
    push_all(output, [END, END, END, END])
    finish = output.finish()
    assert (finish.finish_reason, finish.stop_reason, finish.token_ids) == ("length", None, (END, END, END))


@pytest.mark.parametrize("max_new_tokens", range(1, 9))
def test_what_is_held_back_comes_with_the_last_token(max_new_tokens: int) -> None:
    """Half a character and the beginning of a stop string are both shown when the length ends the completion."""
    output = make_output(stop=("🦊!",), max_new_tokens=max_new_tokens)
    ids = TOKENIZER.encode("Kyō 🦊 x", add_special_tokens=False)
    events = push_all(output, ids)
    assert len(events) == min(max_new_tokens, len(ids))
    whole = TOKENIZER.decode(ids[:max_new_tokens])
    if output.finish_reason:
        assert "".join(event.text for event in events) == output.finish().text == whole


def test_an_abort_keeps_the_text_that_was_sent() -> None:
    output = make_output(stop=("zebra",))
    events = push_all(output, TOKENIZER.encode("a quiz", add_special_tokens=False))
    finish = output.finish()
    assert finish.finish_reason == "abort"
    assert finish.text == "".join(event.text for event in events) == "a qui"


def test_a_drawn_seed_is_reported_and_differs() -> None:
    seeds = {make_output(temperature=1.0).finish().seed for _ in range(10)}
    assert len(seeds) == 10
    assert all(seed is not None and 0 <= seed < 2**53 for seed in seeds)
    assert make_output(temperature=1.0, seed=7).finish().seed == 7
    assert make_output().finish().seed is None


def test_penalties_follow_the_prompt_and_the_completion() -> None:
    output = make_output(repetition_penalty=2.0, presence_penalty=1.0)
    push_all(output, [7, 8])
    logits = np.full(10, 4.0, np.float32)
    penalties = output.next_draw.penalties
    assert penalties is not None
    penalties.apply(logits)
    assert logits.tolist() == [4, 4, 4, 4, 4, 2, 4, 1, 1, 4]
    assert make_output(temperature=1.0).next_draw.penalties is None
