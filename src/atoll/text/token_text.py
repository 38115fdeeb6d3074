"""What one token stands for: its bytes, which need not be whole characters."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenText:
    """The bytes and the text of single tokens of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._added = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items()}
        self._special = frozenset(tokenizer.all_special_ids)
        decoder = tokenizer.backend_tokenizer.decoder
        self._is_byte_level = decoder is not None and b"ByteLevel" in decoder.__getstate__()
        self._known: dict[int, bytes] = {}

    def is_shown(self, token_id: int) -> bool:
        """Whether a token's text is part of an answer: a special token's is not."""
        return token_id not in self._special

    def bytes_of(self, token_id: int) -> bytes:
        """The UTF-8 bytes of a token; those of a completion's tokens add up to its text. Empty for unknown ids."""
        if token_id not in self._known:
            self._known[token_id] = self._bytes(token_id)
        return self._known[token_id]

    def text_of(self, token_id: int) -> str:
        r"""A token's text; for part of a character the bytes in OpenAI's way of writing: `bytes:\xe2\x80`."""
        content = self.bytes_of(token_id)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def text_of_all(self, token_ids: Iterable[int]) -> str:
        """The text of tokens that follow each other, without special tokens."""
        content = b"".join(self.bytes_of(token_id) for token_id in token_ids if self.is_shown(token_id))
        return content.decode(errors="replace")

    def _bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return str(self._added[token_id]).encode()
        token = str(self._tokenizer.convert_ids_to_tokens(token_id) or "")
        table = _byte_of_character()
        if self._is_byte_level and table.keys() >= set(token):
            return bytes(table[character] for character in token)
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        return token.replace("▁", " ").encode()


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's way of writing bytes as printable characters, turned around."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


@functools.lru_cache(maxsize=8)
def token_text_of(tokenizer: PreTrainedTokenizerBase) -> TokenText:
    """The TokenText of a tokenizer, made once."""
    return TokenText(tokenizer)
