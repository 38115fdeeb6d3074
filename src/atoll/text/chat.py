"""A base model's chat template, as pieces: what the template writes is control text, what messages say is not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jinja2

from atoll.errors import Incompatible
from atoll.text.encoding import Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Contents are put in after the template has run, so that nothing in them can pass for the template's own tokens. The
# spaces around a mark show whether the template trims contents.
_SPACE = "\u2003"
_MARK = re.compile(f"({_SPACE}?)\ue000([0-9]+)\ue001({_SPACE}?)")


@dataclass(frozen=True)
class ChatFrame:
    """What a chat template writes around one user's message and before the assistant's answer."""

    before: tuple[Piece, ...]
    after: tuple[Piece, ...]
    lead: str
    """Spaces between prompt and answer. They belong to the answer, whose first token begins with them."""
    trims: bool
    """Whether the template strips white space from messages."""


def chat_pieces(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> list[Piece]:
    """A conversation up to where the assistant answers. Raises Incompatible if the template refuses it."""
    rendered = _render(tokenizer, messages, add_generation_prompt=True)
    contents = [message["content"] for message in messages]
    found = {int(match[2]) for match in _MARK.finditer(rendered)}
    lost = [index for index, content in enumerate(contents) if content and index not in found]
    if lost:
        role = messages[lost[0]]["role"]
        raise Incompatible(f"the base model's chat template leaves out message {lost[0] + 1} (role {role!r})")
    return _split(rendered, contents)


def chat_frame(tokenizer: PreTrainedTokenizerBase, system: str | None) -> ChatFrame:
    """What the chat template writes around a message, the system message included. Raises Incompatible."""
    messages = [{"role": "system", "content": system}] if system else []
    user = len(messages)
    messages.append({"role": "user", "content": "-"})
    prompt = _render(tokenizer, messages, add_generation_prompt=True)
    marks = {int(match[2]): match for match in _MARK.finditer(prompt)}
    if len(marks) != len(messages):
        raise Incompatible("the base model's chat template does not write the messages it is given")
    mark = marks[user]
    contents = [message["content"] for message in messages]
    lead, _ = _around_answer(tokenizer, messages, prompt)
    opening = lead.rstrip(" ")
    after = prompt[mark.end() :] + opening
    return ChatFrame(
        before=tuple(_split(prompt[: mark.start()], contents)),
        after=(Piece(after, is_control=True),) if after else (),
        lead=lead[len(opening) :],
        trims=not (mark[1] and mark[3]),
    )


def text_after_answer(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes after an assistant's answer. Raises Incompatible if it refuses a plain exchange."""
    messages = [{"role": "user", "content": "-"}]
    return _around_answer(tokenizer, messages, _render(tokenizer, messages, add_generation_prompt=True))[1]


def _around_answer(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], prompt: str
) -> tuple[str, str]:
    """What the template writes between the rendered `prompt` and an answer to it, and what it writes after the answer.

    The first is empty for most templates; some open an answer with a space, or with an empty thought.
    """
    answered = [*messages, {"role": "assistant", "content": "-"}]
    rendered = _render(tokenizer, answered, add_generation_prompt=False)
    mark = next((match for match in _MARK.finditer(rendered) if int(match[2]) == len(messages)), None)
    if mark is None:
        return "", ""
    lead = rendered[len(prompt) : mark.start()] if rendered[: mark.start()].startswith(prompt) else ""
    return lead, rendered[mark.end() :]


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
) -> str:
    """Run the chat template with a mark in the place of each content that is not empty."""
    marked = [
        {**message, "content": f"{_SPACE}\ue000{index}\ue001{_SPACE}" if message["content"] else ""}
        for index, message in enumerate(messages)
    ]
    try:
        return str(tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=add_generation_prompt))
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise Incompatible(
            f"the base model's chat template refuses messages of the roles {roles}",
            why=str(error),
            mend="use roles that the base model knows, for example user text instead of a system message",
        ) from error


def _split(rendered: str, contents: Sequence[str]) -> list[Piece]:
    """Put the contents in the place of their marks, trimmed where the template trims."""
    pieces: list[Piece] = []
    end = 0
    for match in _MARK.finditer(rendered):
        content = contents[int(match[2])]
        content = content if match[1] else content.lstrip()
        content = content if match[3] else content.rstrip()
        pieces += [Piece(rendered[end : match.start()], is_control=True), Piece(content, is_control=False)]
        end = match.end()
    pieces.append(Piece(rendered[end:], is_control=True))
    return [piece for piece in pieces if piece.text]
