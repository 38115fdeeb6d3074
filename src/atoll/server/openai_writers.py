"""The choices of text completions and of chat completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from atoll.engine import FinishEvent, TokenEvent
from atoll.server.calls import AnswerReader, CallDelta, Part, read_whole
from atoll.server.choices import Choice
from atoll.server.openai_shapes import LogprobWriter, TextOffsets
from atoll.server.tools import ToolUse


class ChoiceWriter(Protocol):
    """Writes the choices of one answer, each by its index."""

    def whole(self, index: int, choice: Choice) -> dict[str, Any]:
        """A whole choice."""

    def chunks(self, index: int, event: TokenEvent | FinishEvent) -> list[dict[str, Any]]:
        """What one event adds to a choice; often one chunk, sometimes none."""


class TextWriter:
    """Text completions. echoes: the text before each choice; logprobs: how to write them, None where not asked for."""

    def __init__(self, echoes: Sequence[str] | None, logprobs: LogprobWriter | None) -> None:
        self._echoes = echoes
        self._logprobs = logprobs
        self._offsets: dict[int, TextOffsets] = {}

    def whole(self, index: int, choice: Choice) -> dict[str, Any]:
        """A whole choice; `logprobs` have the prompt's tokens first where it is echoed."""
        echo = self._echoes[index] if self._echoes else ""
        finish = choice.finish
        logprobs = None
        if self._logprobs is not None:
            logprobs = self._logprobs.legacy([*finish.prompt_tokens, *choice.tokens], TextOffsets())
        return {
            "index": index,
            "text": echo + finish.text,
            "logprobs": logprobs,
            "finish_reason": finish.finish_reason,
        }

    def chunks(self, index: int, event: TokenEvent | FinishEvent) -> list[dict[str, Any]]:
        """One chunk for a token that shows something, and one for the end."""
        text = "" if isinstance(event, FinishEvent) else event.text
        logprobs = None
        if index not in self._offsets:
            echo = self._echoes[index] if self._echoes else ""
            text = echo + text
            self._offsets[index] = TextOffsets(len(echo))
        if isinstance(event, TokenEvent) and self._logprobs is not None:
            logprobs = self._logprobs.legacy([event], self._offsets[index])
        if isinstance(event, TokenEvent) and not text and not (logprobs and logprobs["tokens"]):
            return []
        finish_reason = event.finish_reason if isinstance(event, FinishEvent) else None
        return [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}]


class ChatWriter:
    """Chat completions."""

    def __init__(self, use: ToolUse, logprobs: LogprobWriter | None) -> None:
        self._use = use
        self._logprobs = logprobs
        self._readers: dict[int, AnswerReader] = {}

    def whole(self, index: int, choice: Choice) -> dict[str, Any]:
        """A whole choice."""
        reader = self._use.reader()
        parts = read_whole(reader, choice.finish.text)
        text = "".join(part for part in parts if isinstance(part, str))
        calls = [_whole_call(part) for part in parts if isinstance(part, CallDelta)]
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        return {
            "index": index,
            "message": message,
            "logprobs": None if self._logprobs is None else self._logprobs.chat(choice.tokens),
            "finish_reason": finish_reason(choice.finish, reader),
        }

    def chunks(self, index: int, event: TokenEvent | FinishEvent) -> list[dict[str, Any]]:
        """Who speaks, once; then what each token adds; then why it ended."""
        chunks: list[dict[str, Any]] = []
        if index not in self._readers:
            self._readers[index] = self._use.reader()
            chunks.append(_chunk(index, {"role": "assistant", "content": ""}))
        reader = self._readers[index]
        if isinstance(event, FinishEvent):
            chunks += [_chunk(index, _delta(part)) for part in reader.finish()]
            return [*chunks, _chunk(index, {}) | {"finish_reason": finish_reason(event, reader)}]
        chunks += [_chunk(index, _delta(part)) for part in reader.push(event.text)]
        logprobs = self._logprobs.chat([event]) if self._logprobs else None
        if logprobs and logprobs["content"]:
            chunks = chunks or [_chunk(index, {})]
            chunks[-1]["logprobs"] = logprobs
        return chunks


def finish_reason(finish: FinishEvent, reader: AnswerReader) -> str:
    """Why an answer ended: an answer that ended by itself with calls ended for their sake."""
    return "tool_calls" if reader.num_calls and finish.finish_reason == "stop" else finish.finish_reason


def _chunk(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _delta(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"content": part}
    if part.name is None:
        return {"tool_calls": [{"index": part.index, "function": {"arguments": part.arguments}}]}
    return {"tool_calls": [{"index": part.index, **_whole_call(part)}]}


def _whole_call(part: CallDelta) -> dict[str, Any]:
    return {
        "id": part.call_id,
        "type": "function",
        "function": {"name": part.name, "arguments": part.arguments},
    }
