"""One answer as OpenAI's items: messages and calls of functions, and the events that tell of them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from atoll.engine import FinishEvent, TokenEvent
from atoll.server.calls import AnswerReader, CallDelta, Part
from atoll.server.openai_shapes import LogprobWriter

Status = Literal["in_progress", "completed", "incomplete"]
Event = dict[str, Any]


@dataclass
class _Item:
    """A message, or a call where `call` is set; `text` is what the message says or the call's arguments."""

    call: CallDelta | None = None
    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    item_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def id(self) -> str:
        return f"msg_{self.item_id}" if self.call is None else f"fc_{self.item_id}"

    def part(self) -> dict[str, Any]:
        """The one part of a message."""
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": list(self.logprobs)}

    def shown(self, status: Status) -> dict[str, Any]:
        """The item as it is now."""
        if self.call is None:
            content = [] if status == "in_progress" else [self.part()]
            return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}
        return {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "call_id": self.call.call_id,
            "name": self.call.name,
            "arguments": self.text,
        }


class ResponseWriter:
    """Writes one response. told: what it says of its request; logprobs: how to write them, None where not asked for."""

    def __init__(self, told: dict[str, Any], reader: AnswerReader, logprobs: LogprobWriter | None) -> None:
        self.response: dict[str, Any] = told | {
            "status": "in_progress",
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
        }
        self._reader = reader
        self._logprobs = logprobs
        self._new_logprobs: list[dict[str, Any]] = []
        self._item: _Item | None = None
        self._num_events = 0

    def open(self) -> list[Event]:
        """The first events."""
        return [
            self._event("response.created", response=dict(self.response)),
            self._event("response.in_progress", response=dict(self.response)),
        ]

    def push(self, token: TokenEvent) -> list[Event]:
        """What one token adds."""
        if self._logprobs is not None:
            self._new_logprobs += self._logprobs.chat([token])["content"]
        return self._parts(self._reader.push(token.text))

    def finish(self, finish: FinishEvent) -> list[Event]:
        """The last events; afterwards `response` is whole."""
        status: Status = "incomplete" if finish.finish_reason == "length" else "completed"
        events = self._parts(self._reader.finish())
        if self._item is None and not self.response["output"]:
            events += self._begin(_Item())
        if self._item is not None and self._new_logprobs and self._item.call is None:
            events += self._text("")
        events += self._end(status)
        self.response |= {"status": status, "usage": _usage(finish)}
        if status == "incomplete":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self.response["completed_at"] = int(time.time())
        return [*events, self._event(f"response.{status}", response=dict(self.response))]

    def fail(self, message: str) -> list[Event]:
        """The last event of an answer that failed."""
        self.response |= {"status": "failed", "error": {"code": "server_error", "message": message}}
        return [self._event("response.failed", response=dict(self.response))]

    def _parts(self, parts: Sequence[Part]) -> list[Event]:
        events: list[Event] = []
        for part in parts:
            if isinstance(part, str):
                if self._item is None or self._item.call is not None:
                    events += self._begin(_Item())
                events += self._text(part)
            elif part.name is not None:
                events += self._begin(_Item(call=part))
            else:
                events += self._arguments(part.arguments)
        return events

    def _begin(self, item: _Item) -> list[Event]:
        events = self._end("completed")
        self._item = item
        index = len(self.response["output"])
        events.append(self._event("response.output_item.added", output_index=index, item=item.shown("in_progress")))
        if item.call is None:
            events.append(self._item_event("response.content_part.added", content_index=0, part=item.part()))
        return events

    def _text(self, text: str) -> list[Event]:
        item = self._current
        item.text += text
        logprobs, self._new_logprobs = self._new_logprobs, []
        item.logprobs += logprobs
        return [self._item_event("response.output_text.delta", content_index=0, delta=text, logprobs=logprobs)]

    def _arguments(self, text: str) -> list[Event]:
        self._current.text += text
        return [self._item_event("response.function_call_arguments.delta", delta=text)]

    def _end(self, status: Status) -> list[Event]:
        """Close the item that is open, if one is."""
        if self._item is None:
            return []
        item, shown = self._item, self._item.shown(status)
        if item.call is None:
            said = {"content_index": 0, "text": item.text, "logprobs": list(item.logprobs)}
            events = [
                self._item_event("response.output_text.done", **said),
                self._item_event("response.content_part.done", content_index=0, part=item.part()),
            ]
        else:
            called = {"name": item.call.name, "arguments": item.text}
            events = [self._item_event("response.function_call_arguments.done", **called)]
        index = len(self.response["output"])
        events.append(self._event("response.output_item.done", output_index=index, item=shown))
        self.response["output"] = [*self.response["output"], shown]
        self._item = None
        return events

    @property
    def _current(self) -> _Item:
        if self._item is None:
            raise RuntimeError("no item is open")
        return self._item

    def _item_event(self, kind: str, **fields: Any) -> Event:
        return self._event(kind, item_id=self._current.id, output_index=len(self.response["output"]), **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        self._num_events += 1
        return {"type": kind, "sequence_number": self._num_events - 1, **fields}


def _usage(finish: FinishEvent) -> dict[str, Any]:
    num_new = len(finish.token_ids)
    return {
        "input_tokens": finish.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": finish.num_cached_tokens, "cache_write_tokens": 0},
        "output_tokens": num_new,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": finish.num_prompt_tokens + num_new,
    }
