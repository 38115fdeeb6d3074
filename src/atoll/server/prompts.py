"""From what a client sends to prompt ids: raw text, a conversation, or the columns of an adapter's own template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atoll.adapters.store import StoredAdapter
from atoll.errors import RequestInvalid
from atoll.text.prompt import PromptRenderer, encode_chat, encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Message = Mapping[str, str]
"""One message of a conversation: its `role` and its `content`."""


@dataclass(frozen=True)
class TokenIds:
    """A prompt that the client has tokenised itself."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Conversation:
    """Messages, some of which may call functions or hold their results, and the functions that the answer may call."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()


Prompt = str | TokenIds | Conversation | Mapping[str, str] | Sequence[Message]
"""Text is taken as it is, a mapping fills the adapter's template, messages go through the base's chat template."""


@dataclass(frozen=True)
class PromptIds:
    """A prompt as the engine takes it; `num_cut_tokens` of the adapter's longest input column did not fit."""

    ids: tuple[int, ...]
    num_cut_tokens: int = 0


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, adapter: StoredAdapter | None) -> PromptIds:
    """Raises RequestInvalid for columns that the adapter's template does not have, Incompatible without a template."""
    if isinstance(prompt, str):
        return PromptIds(tuple(encode_text(tokenizer, prompt)))
    if isinstance(prompt, TokenIds):
        return PromptIds(prompt.ids)
    if isinstance(prompt, Conversation):
        return PromptIds(tuple(encode_chat(tokenizer, prompt.messages, prompt.tools)))
    if not isinstance(prompt, Mapping):
        return PromptIds(tuple(encode_chat(tokenizer, prompt)))
    renderer = column_renderer(tokenizer, adapter, prompt)
    rendered = renderer.prompt(prompt)
    return PromptIds(tuple(rendered.ids), rendered.num_cut_tokens)


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, adapter: StoredAdapter | None) -> str:
    """The prompt as a person reads it, without what a chat template adds."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, TokenIds):
        return str(tokenizer.decode(prompt.ids))
    if isinstance(prompt, Mapping):
        return column_renderer(tokenizer, adapter, prompt).text(prompt)
    messages = prompt.messages if isinstance(prompt, Conversation) else prompt
    return "\n".join(message["content"] for message in messages)


def column_renderer(
    tokenizer: PreTrainedTokenizerBase, adapter: StoredAdapter | None, columns: Mapping[str, str]
) -> PromptRenderer:
    """The renderer of an adapter's contract, which the adapter was trained with. Raises RequestInvalid."""
    contract = adapter.contract if adapter else None
    if contract is None:
        raise RequestInvalid(
            f"{adapter.id if adapter else 'the base model'} has no template for columns",
            where="columns",
            mend="send the prompt as text",
        )
    needed = contract.prompt.columns
    if wrong := [name for name in columns if name not in contract.input_columns]:
        raise RequestInvalid(
            f"the adapter has no input column {wrong[0]!r}",
            where="columns",
            mend=f"its columns are {', '.join(needed)}",
        )
    if missing := [name for name in needed if name not in columns]:
        raise RequestInvalid(
            f"the column {missing[0]!r} is missing", where="columns", mend=f"the columns are {', '.join(needed)}"
        )
    return contract.renderer(tokenizer)


def last_ids(ids: tuple[int, ...], num_tokens: int, begin_id: int | None) -> tuple[int, ...]:
    """The last ids of a prompt; where it begins with the begin-of-sequence token, that one stays and counts."""
    if len(ids) <= num_tokens:
        return ids
    begin = ids[:1] if ids[:1] == (begin_id,) else ()
    return begin + ids[len(ids) - num_tokens + len(begin) :]
