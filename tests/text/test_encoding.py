"""Pieces to ids: what the tokenizer itself gives, except that only control text holds control tokens."""

from __future__ import annotations

import pytest

from atoll.errors import DataError, Incompatible
from atoll.text.encoding import Encoder, Piece
from support.tokenizers import KINDS, make_kind

TEXTS = ["", "a", "Hello there", " two  spaces ", "é日本 🏝️", "\n\nlines\n", '{"PER": ["Anna"]}', "The quick brown fox"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_plain_text_gets_the_tokenizers_own_ids(kind: str, text: str) -> None:
    tokenizer = make_kind(kind)
    assert Encoder(tokenizer).prompt([Piece(text, is_control=False)]) == list(map(int, tokenizer(text).input_ids))


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_text_stay_text(kind: str) -> None:
    tokenizer = make_kind(kind)
    specials = "".join(tokenizer.all_special_tokens)
    text = f"x{specials} <{specials}>{tokenizer.eos_token}"
    encoder = Encoder(tokenizer)
    for ids in (encoder.prompt([Piece(text, is_control=False)]), encoder.continuation(text)):
        assert not set(ids) & set(tokenizer.all_special_ids) - {tokenizer.bos_token_id}
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.eos_token_id in tokenizer(text).input_ids  # what the tokenizer alone would do


def test_a_special_token_made_of_two_pieces_stays_text() -> None:
    tokenizer = make_kind("bytes")
    halves = [Piece("<|im_", is_control=False), Piece("end|>", is_control=False)]
    mixed = [Piece("<|im_", is_control=False), Piece("end|>", is_control=True)]
    for pieces in (halves, mixed):
        ids = Encoder(tokenizer).prompt(pieces)
        assert tokenizer.eos_token_id not in ids
        assert tokenizer.decode(ids) == "<|im_end|>"


def test_control_pieces_hold_control_tokens() -> None:
    tokenizer = make_kind("bytes")
    pieces = [Piece("<|im_start|>", is_control=True), Piece("<|im_start|>", is_control=False)]
    ids = Encoder(tokenizer).prompt(pieces)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 1
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_overlapping_special_strings_are_all_broken() -> None:
    tokenizer = make_kind("bytes")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<ab", "b>c"]})
    ids = Encoder(tokenizer).prompt([Piece("<ab>c", is_control=False)])
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == "<ab>c"


@pytest.mark.parametrize("kind", ["llama2", "metaspace-first"])
def test_begin_token_exactly_once(kind: str) -> None:
    tokenizer = make_kind(kind)
    encoder = Encoder(tokenizer)
    for pieces in (
        [],
        [Piece("a", is_control=False)],
        [Piece("<s>a", is_control=True)],
        [Piece("<s>", is_control=False)],
    ):
        ids = encoder.prompt(pieces)
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.bos_token_id not in encoder.continuation("a")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [" positive", "positive", "\npositive", "日本", "  two"])
def test_a_continuation_adds_its_text_and_nothing_else(kind: str, text: str) -> None:
    tokenizer = make_kind(kind)
    encoder = Encoder(tokenizer)
    prompt = encoder.prompt([Piece("Sentiment:", is_control=False)])
    assert tokenizer.decode(prompt + encoder.continuation(text), skip_special_tokens=True) == f"Sentiment:{text}"


def test_a_continuation_with_a_space_is_one_word_as_in_running_text() -> None:
    for kind in ("bytes", "llama2", "metaspace-first"):
        tokenizer = make_kind(kind)
        running = list(map(int, tokenizer("Sentiment: positive").input_ids))
        continuation = Encoder(tokenizer).continuation(" positive")
        assert running[-len(continuation) :] == continuation


def test_a_tokenizer_without_offsets_is_refused() -> None:
    tokenizer = make_kind("bytes")

    class Slow:
        is_fast = False

    with pytest.raises(Incompatible, match="Slow has no fast implementation"):
        Encoder(Slow())  # type: ignore[arg-type]
    assert tokenizer.is_fast


def test_half_a_character_is_refused() -> None:
    with pytest.raises(DataError, match="unpaired surrogate"):
        Encoder(make_kind("bytes")).prompt([Piece("a\ud83db", is_control=False)])


@pytest.mark.parametrize("kind", KINDS)
def test_spans_are_a_prompts_tokens_and_their_places(kind: str) -> None:
    tokenizer = make_kind(kind)
    encoder = Encoder(tokenizer)
    specials = "".join(tokenizer.all_special_tokens)
    for text in [*TEXTS, f"x{specials} <{specials}>é{tokenizer.eos_token}!"]:
        spans = encoder.spans(text)
        ids = encoder.prompt([Piece(text, is_control=False)])
        assert [span.token_id for span in spans] == ids
        assert all(0 <= span.start <= span.stop <= len(text) for span in spans)
        assert [span.start for span in spans] == sorted(span.start for span in spans)
        covered = {place for span in spans for place in range(span.start, span.stop)}
        assert {place for place, char in enumerate(text) if not char.isspace()} <= covered
        begin = ids[:1] == [tokenizer.bos_token_id] and kind in ("llama2", "metaspace-first")
        assert encoder.spans(text, with_begin=False) == (spans[1:] if begin else spans)
