"""Text completions by the unmodified openai client: several prompts, several answers, echo and log-probabilities."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import OpenAI

from support.servers import Served

PROMPT = "The quick brown fox"
GREEDY: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest.fixture
def client(served: Served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=30)


def ids_of(served: Served, text: str) -> list[int]:
    ids: list[int] = served.engine.base.tokenizer.encode(text)
    return ids


def test_a_prompt_may_be_text_or_ids_or_a_list_of_either(client: OpenAI, served: Served) -> None:
    texts = [PROMPT, "Classify the ticket"]
    alone = [client.completions.create(model="alpha", prompt=text, **GREEDY).choices[0].text for text in texts]
    lists: list[Any] = [texts, [ids_of(served, text) for text in texts]]
    for prompts in lists:
        answer = client.completions.create(model="alpha", prompt=prompts, **GREEDY)
        assert [choice.text for choice in answer.choices] == alone
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == sum(len(ids_of(served, text)) for text in texts)
        assert answer.usage.completion_tokens == 12
    one: Any = ids_of(served, PROMPT)
    assert client.completions.create(model="alpha", prompt=one, **GREEDY).choices[0].text == alone[0]


def test_n_answers_to_each_prompt_stand_together_and_a_prompt_counts_once(client: OpenAI, served: Served) -> None:
    fields: dict[str, Any] = {"model": "alpha", "max_tokens": 8, "seed": 5, "extra_body": {"ignore_eos": True}}
    answer = client.completions.create(prompt=[PROMPT, "Answer"], n=3, **fields)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert len({choice.text for choice in answer.choices[:3]}) > 1
    first = client.completions.create(prompt=PROMPT, **fields).choices[0].text
    assert answer.choices[0].text == first
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids_of(served, PROMPT)) + len(ids_of(served, "Answer"))
    assert answer.usage.completion_tokens == 48


def test_the_choices_of_a_stream_come_mixed_and_add_up(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": "beta", "prompt": [PROMPT, "Answer"], "n": 2, "max_tokens": 10, "seed": 5}
    whole = client.completions.create(**fields)
    texts = dict.fromkeys(range(4), "")
    ends: dict[int, str] = {}
    usage = None
    for part in client.completions.create(**fields, stream=True, stream_options={"include_usage": True}):
        usage = part.usage or usage
        for choice in part.choices:
            assert choice.index not in ends
            texts[choice.index] += choice.text
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert list(texts.values()) == [choice.text for choice in whole.choices]
    assert [ends[index] for index in range(4)] == [choice.finish_reason for choice in whole.choices]
    assert usage is not None
    assert whole.usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)


def test_echo_puts_the_prompt_first(client: OpenAI, served: Served) -> None:
    text = client.completions.create(model="alpha", prompt=PROMPT, **GREEDY).choices[0].text
    ids: Any = ids_of(served, PROMPT)
    for prompt in (PROMPT, ids):
        echoed = client.completions.create(model="alpha", prompt=prompt, echo=True, **GREEDY)
        assert echoed.choices[0].text == PROMPT + text
        parts = client.completions.create(model="alpha", prompt=prompt, echo=True, stream=True, **GREEDY)
        assert "".join(part.choices[0].text for part in parts) == PROMPT + text


def test_log_probabilities_stand_where_their_tokens_do(client: OpenAI) -> None:
    choice = client.completions.create(model="alpha", prompt=PROMPT, logprobs=3, **GREEDY).choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens
    assert logprobs.token_logprobs
    assert logprobs.top_logprobs
    assert logprobs.text_offset
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 6
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        is_shown = not token.startswith(("bytes:", "<|"))
        assert not is_shown or choice.text[offset : offset + len(token)] == token
    # Greedy: each token is the best one, and the best of its alternatives.
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert max(top.values()) == top[token] == logprob
        assert len(top) <= 4
    none = client.completions.create(model="alpha", prompt=PROMPT, logprobs=0, **GREEDY).choices[0].logprobs
    assert none is not None
    assert none.token_logprobs == logprobs.token_logprobs
    assert none.top_logprobs == [None] * 6


def test_a_stream_has_the_same_log_probabilities(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": "alpha", "prompt": PROMPT, "logprobs": 2, **GREEDY}
    whole = client.completions.create(**fields).choices[0].logprobs
    parts = [part.choices[0].logprobs for part in client.completions.create(**fields, stream=True)]
    assert whole is not None
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [item for part in parts if part is not None for item in getattr(part, name)] == getattr(whole, name)


def test_echo_scores_the_prompt(client: OpenAI, served: Served) -> None:
    fields: dict[str, Any] = {"model": "alpha", "prompt": PROMPT, "logprobs": 1, "max_tokens": 1}
    choice = client.completions.create(**fields, echo=True).choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens
    assert logprobs.token_logprobs
    assert logprobs.text_offset
    num_prompt = len(ids_of(served, PROMPT))
    assert "".join(logprobs.tokens[:num_prompt]) == PROMPT
    assert logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in logprobs.token_logprobs[1:num_prompt])
    assert logprobs.text_offset[:2] == [0, len(logprobs.tokens[0])]
    # The score of the prompt's last token is that of an answer which happens to be this token.
    last = ids_of(served, PROMPT)[-1]
    before: Any = ids_of(served, PROMPT)[:-1]
    forced = client.completions.create(
        model="alpha", prompt=before, max_tokens=1, logprobs=1, temperature=0, logit_bias={str(last): 100}
    )
    assert forced.choices[0].logprobs is not None
    assert forced.choices[0].logprobs.token_logprobs == [
        pytest.approx(logprobs.token_logprobs[num_prompt - 1], abs=1e-4)
    ]


def test_echo_shows_a_prompt_of_one_token(client: OpenAI, served: Served) -> None:
    prompt: Any = ids_of(served, PROMPT)[:1]
    choice = client.completions.create(model="alpha", prompt=prompt, echo=True, logprobs=1, **GREEDY).choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens
    assert logprobs.token_logprobs
    assert logprobs.text_offset
    assert choice.text.startswith(logprobs.tokens[0])
    assert len(logprobs.tokens) == 1 + 6
    assert [value is None for value in logprobs.token_logprobs] == [True] + 6 * [False]
    assert logprobs.text_offset[:2] == [0, len(logprobs.tokens[0])]


def test_biases_and_penalties_change_what_is_chosen(client: OpenAI) -> None:
    def text(**fields: Any) -> str:
        extra = {"ignore_eos": True, **fields.pop("extra_body", {})}
        answer = client.completions.create(
            model="alpha", prompt=PROMPT, max_tokens=24, temperature=0, extra_body=extra, **fields
        )
        return answer.choices[0].text

    plain = text()
    assert text(logit_bias={"75": 100}) != plain
    assert text(extra_body={"repetition_penalty": 2.0}) != plain
    assert text(frequency_penalty=2.0) != plain
    assert text(presence_penalty=2.0) != plain
    assert text(extra_body={"top_k": -1}) == plain


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": []}, "neither"),
        ({"prompt": [[]]}, "the prompt is empty"),
        ({"prompt": [1, "x"]}, "prompt is none of"),
        ({"prompt": [[1], 2]}, "prompt is none of"),
        ({"prompt": [True]}, "prompt is none of"),
        ({"prompt": [-1]}, "outside of the vocabulary"),
        ({"prompt": [10**30]}, "outside of the vocabulary"),
        ({"prompt": ["x"] * 65}, "the number of answers is 65"),
        ({"prompt": ["x"] * 33, "n": 2}, "the number of answers is 66"),
        ({"n": 0}, "n: "),
        ({"n": 2, "best_of": 3}, "best_of other than n"),
        ({"logprobs": 21}, "logprobs"),
        ({"echo": True, "logprobs": 1, "stream": True}, "not for streams"),
        ({"logit_bias": {"x": 1}}, "keys are token ids"),
        ({"logit_bias": {"99999": 1}}, "outside of the vocabulary"),
        ({"logit_bias": {"5": 101}}, "from -100 to 100"),
        ({"logit_bias": {"5": 1, "05": 2}}, "different token ids"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "at most 300"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"top_k": -2}, "top_k"),
        ({"echo": True, "prompt": None, "columns": {"text": "x"}, "model": "sentiment"}, "echo is for prompts"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_done_is_refused(client: OpenAI, fields: dict[str, Any], message: str) -> None:
    body = {"model": "alpha", "prompt": "x", "max_tokens": 2} | fields
    with pytest.raises(openai.BadRequestError, match=message):
        client.post("/completions", body=body, cast_to=object)


def test_numbers_are_checked_before_anything_is_made(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand million echoes, or a hundred thousand tuples of biases, would be the end of the server."""
    monkeypatch.setattr("atoll.server.openai_bodies.GenerationBody.generation_ask", None)
    for fields, message in [
        ({"prompt": "a", "echo": True, "n": 10**9}, "n is 1000000000"),
        ({"prompt": ["x"] * 100_000, "logit_bias": {"5": 1}}, "the number of answers is 100000"),
    ]:
        with pytest.raises(openai.BadRequestError, match=message):
            client.post("/completions", body={"model": "alpha"} | fields, cast_to=object)


def test_best_of_may_be_what_n_is(client: OpenAI) -> None:
    answer = client.completions.create(model="alpha", prompt="x", n=2, best_of=2, max_tokens=2)
    assert len(answer.choices) == 2
