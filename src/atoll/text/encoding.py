"""Pieces of text to token ids, with control tokens only where the author of a piece may write them.

A tokenizer turns the string `<|im_end|>` into the control token of that name wherever it finds it, also in a user's
text. Here only pieces marked as control may do so; anywhere else the string stays text. Text without such strings gets
the very ids that the tokenizer itself would give.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from atoll.errors import DataError, Incompatible

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

# A noncharacter: no text holds it, no vocabulary merges it with its neighbours.
_SEPARATOR = "\ufdd0"


class Piece(NamedTuple):
    """A part of a prompt. Special tokens are read in control text and are plain text everywhere else."""

    text: str
    is_control: bool


class TokenSpan(NamedTuple):
    """A token, and the characters of a text that it stands for: those from `start` to before `stop`."""

    token_id: int
    start: int
    stop: int


class Encoder:
    """Encodes pieces with one tokenizer; `encoder_of` gives the shared instance."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises Incompatible for a tokenizer that cannot say which characters a token stands for."""
        if not tokenizer.is_fast:
            name = type(tokenizer).__name__
            mend = "use a base model with a `tokenizer.json`"
            raise Incompatible(f"the tokenizer {name} has no fast implementation", mend=mend)
        self._backend = tokenizer.backend_tokenizer
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        # Look-aheads, so that strings that overlap are found as well; the one at first characters is there for speed. A
        # string of one character cannot be broken up.
        words = sorted((word for word in special if len(word) > 1), key=len, reverse=True)
        first = "".join({re.escape(word[0]) for word in words})
        self._special = re.compile(f"(?=[{first}])(?=({'|'.join(map(re.escape, words))}))") if words else None
        begin = tokenizer.bos_token_id
        wants_begin = begin is not None and self._backend.encode("").ids[:1] == [begin]
        self._begin: list[int] = [begin] if wants_begin else []
        letter = self._backend.encode("a", add_special_tokens=False).tokens
        self._adds_space = bool(letter) and letter[0][:1] in ("▁", "Ġ")

    def prompt(self, pieces: Iterable[Piece]) -> list[int]:
        """The ids of a prompt, with the begin-of-sequence token exactly once if the tokenizer wants it."""
        ids = self._encode([piece for piece in pieces if piece.text])
        return ids if ids[:1] == self._begin else self._begin + ids

    def continuation(self, text: str) -> list[int]:
        """The ids of text that follows a prompt: no begin-of-sequence token, and no space that `text` does not have."""
        if not text:
            return []
        return self._encode([Piece(text, is_control=False)], is_start=not self._adds_space)

    def spans(self, text: str, *, with_begin: bool = True) -> list[TokenSpan]:
        """The tokens of a raw prompt and their places in it; the begin-of-sequence token has no width."""
        breaks = self._breaks(text, [Piece(text, is_control=False)])
        spans = self._broken_spans(text, breaks) if breaks else _spans(self._backend_encoding(text))
        if not with_begin or [span.token_id for span in spans[:1]] == self._begin:
            return spans
        return [TokenSpan(token_id, 0, 0) for token_id in self._begin] + spans

    def _encode(self, pieces: Sequence[Piece], *, is_start: bool = True) -> list[int]:
        text = "".join(piece.text for piece in pieces)
        breaks = ([] if is_start else [0]) + self._breaks(text, pieces)
        if not breaks:
            return list(self._backend_encoding(text).ids)
        return [span.token_id for span in self._broken_spans(text, breaks)]

    def _breaks(self, text: str, pieces: Sequence[Piece]) -> list[int]:
        """Where to break strings that look like special tokens and do not lie inside one control piece."""
        matches = list(self._special.finditer(text)) if self._special else []
        if not matches:
            return []
        control: list[tuple[int, int]] = []
        start = 0
        for piece in pieces:
            if piece.is_control:
                control.append((start, start + len(piece.text)))
            start += len(piece.text)
        spans = [match.span(1) for match in matches]
        return [begin + 1 for begin, end in spans if not any(a <= begin and end <= b for a, b in control)]

    def _broken_spans(self, text: str, breaks: list[int]) -> list[TokenSpan]:
        """Encode with a separator at each break, and drop the tokens that stand for separators."""
        bounds = [0, *breaks, len(text)]
        marked = _SEPARATOR.join(text[a:b] for a, b in itertools.pairwise(bounds))
        places = [position + index for index, position in enumerate(breaks)]
        separators = set(places)
        spans: list[TokenSpan] = []
        for token_id, start, end in _spans(self._backend_encoding(marked)):
            covered = separators.intersection(range(start, end))
            if covered and end - start > 1:
                raise Incompatible("the tokenizer cannot keep the text of special tokens apart from the tokens")
            # A token of no width is the space that some tokenizers put before the first character.
            if not covered and (end > start or start not in separators):
                num_before = bisect.bisect_left(places, start)
                spans.append(TokenSpan(token_id, start - num_before, end - num_before))
        return spans

    def _backend_encoding(self, text: str) -> Encoding:
        try:
            encoding: Encoding = self._backend.encode(text, add_special_tokens=False)
        except TypeError:
            mend = "repair the text: it was cut, or decoded with the wrong encoding"
            raise DataError("the text holds half a character (an unpaired surrogate)", mend=mend) from None
        return encoding


def _spans(encoding: Encoding) -> list[TokenSpan]:
    return [TokenSpan(token_id, *place) for token_id, place in zip(encoding.ids, encoding.offsets, strict=True)]


@functools.lru_cache(maxsize=8)
def encoder_of(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """The encoder of a tokenizer, made once. Raises Incompatible."""
    return Encoder(tokenizer)
