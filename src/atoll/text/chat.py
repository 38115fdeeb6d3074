"""A base model's chat template, as pieces: what the template writes is control text, what messages say is not."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jinja2

from atoll.errors import Incompatible
from atoll.text.chat_tools import Message, Tool, guarded, says_all_names, split_guarded, told_in_text
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


def chat_pieces(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Tool] = ()
) -> list[Piece]:
    """A conversation up to where the assistant answers. Raises Incompatible if the template refuses it.

    Tools, calls and their results go through the template where it knows them; else they are told in text.
    """
    if tools or any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
        pieces = _with_tools(tokenizer, messages, tools)
        if pieces is not None:
            return pieces
        messages = told_in_text(messages, tools, takes_system=_takes_system(tokenizer))
    rendered = _render(tokenizer, messages, add_generation_prompt=True)
    if lost := _lost(rendered, messages):
        role = messages[lost[0]]["role"]
        raise Incompatible(f"the base model's chat template leaves out message {lost[0] + 1} (role {role!r})")
    return _split(rendered, messages)


def _with_tools(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Tool]
) -> list[Piece] | None:
    """The conversation as the template itself writes tools; None for a template that does not."""
    try:
        rendered = _render(tokenizer, messages, tools, add_generation_prompt=True)
        # Some models have never seen text beside a call: their templates leave it out.
        is_lost = any(not messages[index].get("tool_calls") for index in _lost(rendered, messages))
        if is_lost or not says_all_names(rendered, messages, tools):
            return None
        return _split(rendered, messages)
    except Incompatible:
        return None


def _takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    messages = [{"role": "system", "content": "-"}, {"role": "user", "content": "-"}]
    try:
        return not _lost(_render(tokenizer, messages, add_generation_prompt=True), messages)
    except Incompatible:
        return False


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
    lead, _ = _around_answer(tokenizer, messages, prompt)
    opening = lead.rstrip(" ")
    after = prompt[mark.end() :] + opening
    return ChatFrame(
        before=tuple(_split(prompt[: mark.start()], messages)),
        after=(Piece(after, is_control=True),) if after else (),
        lead=lead[len(opening) :],
        trims=not (mark[1] and mark[3]),
    )


def text_after_answer(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes after an assistant's answer. Raises Incompatible if it refuses a plain exchange."""
    messages = [{"role": "user", "content": "-"}]
    return _around_answer(tokenizer, messages, _render(tokenizer, messages, add_generation_prompt=True))[1]


def _around_answer(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], prompt: str) -> tuple[str, str]:
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
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    add_generation_prompt: bool,
) -> str:
    """Run the chat template with a mark in the place of each content that is not empty."""
    marked = [
        guarded({key: value for key, value in message.items() if key != "content"})
        | {"content": f"{_SPACE}\ue000{index}\ue001{_SPACE}" if message["content"] else ""}
        for index, message in enumerate(messages)
    ]
    try:
        text = tokenizer.apply_chat_template(
            marked, tools=guarded(tools) or None, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise Incompatible(
            f"the base model's chat template refuses messages of the roles {roles}",
            why=str(error),
            mend="use roles that the base model knows, for example user text instead of a system message",
        ) from error
    return str(text)


def _lost(rendered: str, messages: Sequence[Message]) -> list[int]:
    """The messages that the template has left out."""
    found = {int(match[2]) for match in _MARK.finditer(rendered)}
    return [index for index, message in enumerate(messages) if message["content"] and index not in found]


def _split(rendered: str, messages: Sequence[Message]) -> list[Piece]:
    """Put the contents in the place of their marks, trimmed where the template trims. Raises Incompatible."""
    pieces: list[Piece] = []
    end = 0
    for match in _MARK.finditer(rendered):
        message = messages[int(match[2])]
        content = message["content"]
        content = content if match[1] else content.lstrip()
        content = content if match[3] else content.rstrip()
        if message["role"] == "tool" and rendered[match.start() - 1] == rendered[match.end() : match.end() + 1] == '"':
            content = json.dumps(content, ensure_ascii=False)[1:-1]  # some templates write results as JSON strings
        pieces += [*_written(rendered[end : match.start()]), Piece(content, is_control=False)]
        end = match.end()
    pieces += _written(rendered[end:])
    return [piece for piece in pieces if piece.text]


def _written(rendered: str) -> list[Piece]:
    try:
        return [Piece(text, is_control) for text, is_control in split_guarded(rendered)]
    except ValueError as error:
        raise Incompatible("the base model's chat template cannot be used for this", why=str(error)) from None
