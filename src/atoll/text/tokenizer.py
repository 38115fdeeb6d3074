"""What ends an answer, and ids back to text while they arrive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from atoll.errors import Incompatible
from atoll.text.chat import text_after_answer

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

_NUM_CONTEXT_TOKENS = 8
# No character has more bytes than 4. Tokens that wait for longer than this are no unfinished character.
_MAX_PENDING_TOKENS = 16
_REPLACEMENT = "\ufffd"


def completion_end_id(tokenizer: PreTrainedTokenizerBase, chat: bool) -> int:
    """The token that ends a completion: for chat the one that the chat template writes after an answer, else EOS.

    Raises Incompatible if there is none.
    """
    if chat and tokenizer.chat_template:
        tail = text_after_answer(tokenizer).lstrip()
        special = [token for token in tokenizer.added_tokens_decoder.items() if token[1].special]
        ends = [(len(token.content), token_id) for token_id, token in special if tail.startswith(token.content)]
        if ends:
            return int(max(ends)[1])
    if tokenizer.eos_token_id is None:
        mend = "set `eos_token` in the base model's tokenizer_config.json"
        raise Incompatible("the tokenizer has no end-of-sequence token, so no answer could end", mend=mend)
    return int(tokenizer.eos_token_id)


def end_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None = None) -> frozenset[int]:
    """All tokens that end an answer: EOS, the chat template's end of turn, and those that the base model names."""
    named = getattr(generation_config, "eos_token_id", None)
    ids = {completion_end_id(tokenizer, chat=False)} if tokenizer.eos_token_id is not None else set()
    if tokenizer.chat_template:
        ids.add(completion_end_id(tokenizer, chat=True))
    ids.update([named] if isinstance(named, int) else named or [])
    return frozenset(ids)


class IncrementalDetokenizer:
    """Turns ids into text one by one; text once given is never taken back.

    What `push` and `flush` return adds up to the decoded completion, provided that its bytes are valid UTF-8. A
    character of several tokens is held back until it is whole. Special tokens are not shown.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_ids: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        # Decoders look back (a word's space is dropped at the start of a text), so the end of the prompt, and later the
        # tokens of the last text given, are decoded with each new token. They have to begin with a whole character.
        self._context = [token_id for token_id in prompt_ids if token_id not in self._special][-_NUM_CONTEXT_TOKENS:]
        while self._decode(self._context).startswith(_REPLACEMENT):
            del self._context[0]
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Take the next token; returns the text that is now certain, often a word, sometimes nothing."""
        if token_id in self._special:
            return ""
        self._pending.append(token_id)
        return self._new_text(is_certain=len(self._pending) > _MAX_PENDING_TOKENS)

    def flush(self) -> str:
        """The text still held back, at the end of the answer; a broken character shows as U+FFFD."""
        return self._new_text(is_certain=True)

    def _new_text(self, *, is_certain: bool) -> str:
        given = self._decode(self._context)
        whole = self._decode(self._context + self._pending)
        if len(whole) <= len(given) or (whole.endswith(_REPLACEMENT) and not is_certain):
            return ""
        self._context, self._pending = self._pending, []
        return whole[len(given) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
