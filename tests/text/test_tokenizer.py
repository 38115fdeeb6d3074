"""What ends an answer, and text while it arrives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import Incompatible
from atoll.text.tokenizer import IncrementalDetokenizer, completion_end_id, end_ids
from support.tokenizers import CHAT_TEMPLATES, KINDS, make_kind

_tokenizers = {kind: make_kind(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", ["bytes", *CHAT_TEMPLATES])
def test_the_end_of_turn_that_the_template_writes(kind: str) -> None:
    tokenizer = _tokenizers[kind]
    assert tokenizer.decode([completion_end_id(tokenizer, chat=True)]) == "<|im_end|>"


def test_the_end_of_turn_may_differ_from_eos() -> None:
    tokenizer = make_kind("bytes")
    tokenizer.eos_token = "<|endoftext|>"
    assert completion_end_id(tokenizer, chat=True) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert completion_end_id(tokenizer, chat=False) == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert end_ids(tokenizer) == {0, 2}


def test_a_template_without_an_end_of_turn_ends_with_eos() -> None:
    tokenizer = make_kind("bytes")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    assert completion_end_id(tokenizer, chat=True) == tokenizer.eos_token_id


def test_end_ids_take_in_the_generation_config() -> None:
    tokenizer = _tokenizers["bytes-plain"]
    assert end_ids(tokenizer) == {2}
    assert end_ids(tokenizer, SimpleNamespace(eos_token_id=7)) == {2, 7}
    assert end_ids(tokenizer, SimpleNamespace(eos_token_id=[7, 9])) == {2, 7, 9}
    assert end_ids(tokenizer, SimpleNamespace(eos_token_id=None)) == {2}


def test_no_eos_is_refused() -> None:
    tokenizer = make_kind("bytes-plain")
    tokenizer.eos_token = None
    with pytest.raises(Incompatible, match="no end-of-sequence token"):
        completion_end_id(tokenizer, chat=False)


@pytest.mark.parametrize("kind", ["bytes", "llama2", "metaspace-first"])
@given(prompt=st.text(max_size=12), text=st.text(max_size=24))
@settings(deadline=None, max_examples=60)
def test_streamed_text_adds_up(kind: str, prompt: str, text: str) -> None:
    tokenizer = _tokenizers[kind]
    prompt_ids = tokenizer(f"{prompt}:").input_ids
    ids = tokenizer(f"{prompt}:{text}").input_ids[len(prompt_ids) :]
    whole = tokenizer.decode(tokenizer(f"{prompt}:{text}").input_ids, skip_special_tokens=True)
    start = len(tokenizer.decode(prompt_ids, skip_special_tokens=True))
    detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids)
    if tokenizer(f"{prompt}:{text}").input_ids[: len(prompt_ids)] != prompt_ids:
        return
    assert "".join(map(detokenizer.push, ids)) + detokenizer.flush() == whole[start:]


@pytest.mark.parametrize("kind", ["bytes", "llama2"])
def test_a_character_is_held_back_until_it_is_whole(kind: str) -> None:
    tokenizer = _tokenizers[kind]
    prompt_ids = tokenizer("x").input_ids
    ids = tokenizer("x日é").input_ids[len(prompt_ids) :]
    detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids)
    assert [detokenizer.push(token_id) for token_id in ids] == ["", "", "日", "", "é"]
    assert detokenizer.flush() == ""


def test_a_long_run_of_byte_tokens_streams_on() -> None:
    tokenizer = _tokenizers["llama2"]
    text = "日本語" * 10
    detokenizer = IncrementalDetokenizer(tokenizer, tokenizer(text).input_ids)
    pushed = [
        detokenizer.push(token_id) for token_id in tokenizer(f"a{text}").input_ids[len(tokenizer("a").input_ids) :]
    ]
    assert "".join(pushed) == text
    assert sum(map(bool, pushed)) == len(text)


def test_the_space_of_the_first_word_is_kept() -> None:
    for kind in ("llama2", "metaspace-first", "bytes"):
        tokenizer = _tokenizers[kind]
        ids = tokenizer("The quick").input_ids
        first = len(tokenizer("The").input_ids)
        assert IncrementalDetokenizer(tokenizer, ids[:first]).push(ids[first]).startswith(" ")


def test_special_tokens_are_not_shown() -> None:
    tokenizer = _tokenizers["bytes"]
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert [detokenizer.push(token_id) for token_id in (1, 2, tokenizer("a").input_ids[0], 2)] == ["", "", "a", ""]


def test_bytes_that_are_no_text_come_out_in_the_end() -> None:
    tokenizer = _tokenizers["bytes"]
    broken = tokenizer("日").input_ids[0]
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert detokenizer.push(broken) == ""
    assert detokenizer.flush() == "\ufffd"
    many = [detokenizer.push(broken) for _ in range(40)]
    assert "".join(many).count("\ufffd") >= 20  # not held back for ever
