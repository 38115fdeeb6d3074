"""Functions that a model may call, as a conversation holds them: for templates that know them, and for all others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CALL_OPEN = "<tool_call>"
CALL_CLOSE = "</tool_call>"

Message = Mapping[str, Any]
"""`role`, `content`; `tool_calls` where the assistant calls functions, `tool_call_id` and `name` in their results."""
Tool = Mapping[str, Any]
"""A function as OpenAI writes it: `{"type": "function", "function": {"name", "description", "parameters"}}`."""

# What a client writes stands between these while the template runs. They pass through `tojson` as they are.
_OPEN, _CLOSE = "\ue002", "\ue003"
_GUARDED = re.compile(f"{_OPEN}([^{_OPEN}{_CLOSE}]*){_CLOSE}")
_MARKS = re.compile("[\ue000-\ue003]")
# Templates compare such strings (`tool.type == "function"`), so they get no marks. Special tokens have brackets.
_PLAIN = re.compile(r"[A-Za-z0-9_ .,-]*")

_TOOL_TEXT = f"""\
You may call these functions:
%s
To call one, answer only with
{CALL_OPEN}
{{"name": "its name", "arguments": {{}}}}
{CALL_CLOSE}"""


def guarded(value: Any) -> Any:
    """Mark the strings of `value` that a client wrote and that a template could take for its own tokens.

    Names are marked in any case: by their marks `says_all_names` finds them. Lists and mappings are copied.
    """
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else _marked(value)
    if isinstance(value, Mapping):
        return {
            guarded(key): _marked(item) if key == "name" and isinstance(item, str) else guarded(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [guarded(item) for item in value]
    return value


def split_guarded(text: str) -> Iterable[tuple[str, bool]]:
    """The parts of a rendered text, each with whether the template itself wrote it. Raises ValueError.

    An error means that the template has taken a marked string apart, so nobody knows any more who wrote what.
    """
    parts = _GUARDED.split(text)
    if any(_MARKS.search(part) or "\\ue002" in part for part in parts):
        raise ValueError("the template takes strings apart")
    return [(part, place % 2 == 0) for place, part in enumerate(parts) if part]


def says_all_names(rendered: str, messages: Sequence[Message], tools: Sequence[Tool]) -> bool:
    """Whether a template wrote the names of all tools and calls: those that know nothing of them leave them out."""
    functions = [tool["function"] for tool in tools]
    functions += [call["function"] for message in messages for call in message.get("tool_calls", ())]
    return all(_marked(function["name"]) in rendered for function in functions)


def told_in_text(messages: Sequence[Message], tools: Sequence[Tool], *, takes_system: bool) -> list[Message]:
    """The same conversation for templates without tools: as text, in the form that many models were trained with."""
    told: list[dict[str, Any]] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
            if told and told[-1].pop("is_response", False):
                content = f"{told.pop()['content']}\n{content}"
        calls = "\n".join(_call_text(call["function"]) for call in message.get("tool_calls", ()))
        told.append({"role": role, "content": "\n".join(part for part in (content, calls) if part)})
        if message["role"] == "tool":
            told[-1]["is_response"] = True
    told = [{"role": message["role"], "content": message["content"]} for message in told]
    if not tools:
        return list(told)
    text = _TOOL_TEXT % "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    role = "system" if takes_system else "user"
    if not told or told[0]["role"] != role:
        return [{"role": role, "content": text}, *told]
    content = f"{told[0]['content']}\n\n{text}" if takes_system else f"{text}\n\n{told[0]['content']}"
    return [{"role": role, "content": content}, *told[1:]]


def _call_text(function: Mapping[str, Any]) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return f"{CALL_OPEN}\n{json.dumps(call, ensure_ascii=False)}\n{CALL_CLOSE}"


def _marked(text: str) -> str:
    return f"{_OPEN}{_MARKS.sub(chr(0xFFFD), text)}{_CLOSE}"
