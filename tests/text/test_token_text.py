"""The bytes of single tokens add up to the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from atoll.text.token_text import TokenText
from support.tokenizers import make_kind

TOKENIZERS = {kind: make_kind(kind) for kind in ("bytes", "llama2", "metaspace-first")}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
def test_the_bytes_of_tokens_add_up_to_the_text(kind: str, text: str) -> None:
    tokenizer: PreTrainedTokenizerBase = TOKENIZERS[kind]
    token_text = TokenText(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    joined = token_text.text_of_all(ids)
    shown = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    # Decoders for text with "▁" drop the space before the first word, and spell it as a space within the text.
    assert joined in (shown, " " + shown)


def test_part_of_a_character_is_written_as_bytes() -> None:
    token_text = TokenText(TOKENIZERS["bytes"])
    ids = TOKENIZERS["bytes"].encode("𝄞", add_special_tokens=False)
    assert len(ids) > 1
    assert all(token_text.text_of(token_id).startswith("bytes:\\x") for token_id in ids)
    assert b"".join(token_text.bytes_of(token_id) for token_id in ids).decode() == "𝄞"


def test_special_tokens_are_not_shown_and_unknown_ids_are_empty() -> None:
    tokenizer = TOKENIZERS["bytes"]
    token_text = TokenText(tokenizer)
    assert not token_text.is_shown(tokenizer.eos_token_id)
    assert token_text.text_of(tokenizer.eos_token_id) == "<|im_end|>"
    assert token_text.bytes_of(99_999) == b""
