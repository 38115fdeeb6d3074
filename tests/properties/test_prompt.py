"""A generation prompt is a strict prefix of the supervised ids, whatever the row, the base and the limit."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from atoll.config.task import PromptConfig
from atoll.errors import DataError
from atoll.text.prompt import PromptRenderer
from support.tokenizers import KINDS, make_kind

TEMPLATES = ("{a}", "Read.\n{a} and {b}\nAnswer: ", "{b}\n\n{a}\n", "<|im_start|>{a}{b}{{x}}", "{a}: {a}\nIt is")
_tokenizers = {kind: make_kind(kind) for kind in KINDS}

specials = st.sampled_from(
    ["<|im_end|>", "<|im_start|>", "</s>", "<s>", "<|im_", "end|>", "[/INST]", " ", "\n", "\ufdd0"]
)
texts = st.lists(st.one_of(st.text(max_size=12), specials), max_size=6).map("".join)
rows = st.fixed_dictionaries({"a": texts, "b": texts, "target": texts})


@pytest.mark.parametrize("kind", KINDS)
@given(row=rows, template=st.sampled_from(TEMPLATES), max_length=st.none() | st.integers(8, 90))
@settings(deadline=None, max_examples=80)
def test_prompt_is_a_strict_prefix(kind: str, row: dict[str, str], template: str, max_length: int | None) -> None:
    tokenizer = _tokenizers[kind]
    renderer = PromptRenderer(tokenizer, PromptConfig(template=template), ("a", "b"), "target", max_length)
    try:
        example = renderer.supervised(row)
    except DataError:
        assume(False)
    completion = example.ids[example.num_prompt_tokens :]
    prompt = renderer.prompt({"a": row["a"], "b": row["b"]}, reserve_tokens=len(completion))
    assert prompt.ids == example.ids[: example.num_prompt_tokens]
    assert prompt.num_cut_tokens == example.num_cut_tokens
    # The answer ends once, with the token that stops generation, and nothing else in it is a control token.
    assert completion[-1] == renderer.end_id
    assert not set(completion[:-1]) & set(tokenizer.all_special_ids)
    assert max_length is None or len(example.ids) <= max_length


def test_a_template_that_multiplies_its_columns_is_refused_before_it_is_filled() -> None:
    kind = next(iter(_tokenizers))
    renderer = PromptRenderer(_tokenizers[kind], PromptConfig(template="{a}" * 100_000), ("a",), "target", 90)
    with pytest.raises(DataError, match="1,000,000,000 characters"):
        renderer.prompt({"a": "x" * 10_000})


@pytest.mark.parametrize("kind", KINDS)
@given(row=rows)
@settings(deadline=None, max_examples=40)
def test_the_answer_decodes_to_the_target(kind: str, row: dict[str, str]) -> None:
    tokenizer = _tokenizers[kind]
    prompt = PromptConfig(template="{a} {b}\nAnswer:")
    example = PromptRenderer(tokenizer, prompt, ("a", "b"), "target").supervised(row)
    start = tokenizer.decode(example.ids[: example.num_prompt_tokens])
    whole = tokenizer.decode(example.ids[:-1])
    assert whole[len(start) :].removeprefix(" ") == row["target"].removeprefix(" ")
