"""Who answers in `atoll chat`: an engine of its own, or a server that runs already."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from atoll.cli.chat_session import FREE_TEMPERATURE, Persona, Turn
from atoll.errors import (
    AdapterNotFound,
    AtollError,
    Forbidden,
    RequestInvalid,
    Unauthorized,
    Unavailable,
    UsageError,
)

if TYPE_CHECKING:
    import httpx2 as httpx

    from atoll.adapters.catalog import AdapterCatalog
    from atoll.engine import Engine
    from atoll.model.load import BaseModel
    from atoll.server.prompts import Prompt

MAX_RANK = 256
_TIMEOUT_S = 10.0
_MAX_LINE_BYTES = 1 << 20
_MAX_ERROR_BYTES = 1 << 16
_MAX_LIST_BYTES = 16 << 20


class LocalSpeaker:
    """Answers by an engine that somebody else starts and closes."""

    def __init__(self, base: BaseModel, engine: Engine, catalog: AdapterCatalog) -> None:
        from atoll.server.prepare import Preparer
        from atoll.server.settings import ServerSettings

        self.base_name = base.name
        self._base = base
        self._engine = engine
        self._catalog = catalog
        self._preparer = Preparer(base, catalog, ServerSettings(), max_length=engine.max_length, max_rank=MAX_RANK)

    def persona(self, adapter_id: str) -> Persona:
        adapter = self._catalog.resolve(adapter_id)
        adapter.check_base(self._base.digest)
        return Persona(adapter_id, adapter.contract.prompt.columns if adapter.contract else ())

    def adapter_ids(self) -> list[str]:
        return [adapter.name for adapter in self._catalog.list()]

    def speak(self, turn: Turn) -> Generator[str]:
        from queue import SimpleQueue

        from atoll.engine import ErrorEvent, Event, FinishEvent
        from atoll.server.caller import ANYBODY
        from atoll.server.prepare import Ask

        ask = Ask(
            prompt=self._prompt(turn),
            adapter_id=turn.adapter_id,
            default_temperature=FREE_TEMPERATURE,
            **dict(turn.parameters),  # type: ignore[arg-type]
        )
        events: SimpleQueue[Event] = SimpleQueue()
        request = self._preparer.prepare(ask, ANYBODY).request(0, ANYBODY, events.put)
        self._engine.submit(request)
        try:
            while not isinstance(event := events.get(), FinishEvent):
                if isinstance(event, ErrorEvent):
                    raise event.error
                if event.text:
                    yield event.text
        finally:
            self._engine.abort(request.request_id)  # means nothing to one that has ended

    def _prompt(self, turn: Turn) -> Prompt:
        if turn.columns is not None:
            return turn.columns
        if self._base.tokenizer.chat_template:
            return turn.messages
        return turn.messages[-1]["content"]


class ServerSpeaker:
    """Answers by the OpenAI dialect of a server. Raises UsageError for what is no address."""

    def __init__(self, url: str, key: str | None) -> None:
        import httpx2 as httpx

        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{url[:200]!r} is not a server's address", mend="write --url http://HOST:PORT")
        self._url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # An answer may take its time; what may not is the connection.
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(None, connect=_TIMEOUT_S))
        self._cards = self._models()
        self.base_name = str(self._cards[0]["id"]) if self._cards else "base"

    def persona(self, adapter_id: str) -> Persona:
        from urllib.parse import quote

        card = self._get(f"/v1/models/{quote(adapter_id, safe='')}")
        columns = card.get("columns") or ()
        return Persona(adapter_id, tuple(str(column) for column in columns))

    def adapter_ids(self) -> list[str]:
        return [str(card["id"]) for card in self._models()[1:]]

    def speak(self, turn: Turn) -> Generator[str]:
        body: dict[str, Any] = {"model": turn.adapter_id or self.base_name, "stream": True} | dict(turn.parameters)
        if "max_new_tokens" in body:
            body["max_tokens"] = body.pop("max_new_tokens")
        if turn.columns is None:
            body = {"temperature": FREE_TEMPERATURE, "messages": list(turn.messages)} | body
        else:
            body |= {"messages": [], "columns": dict(turn.columns)}
        with self._errors(), self._client.stream("POST", f"{self._url}/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                raise _refusal(self._url, answer.status_code, _read(answer, _MAX_ERROR_BYTES))
            for line in answer.iter_lines():
                if line.startswith("data: {") and len(line) <= _MAX_LINE_BYTES:
                    yield from _pieces(json.loads(line.removeprefix("data: ")))

    def _models(self) -> list[dict[str, Any]]:
        cards = self._get("/v1/models").get("data")
        if not isinstance(cards, list) or not all(isinstance(card, dict) and "id" in card for card in cards):
            raise Unavailable(f"what answers at {self._url} is not an Atoll server")
        return cards

    def _get(self, path: str) -> dict[str, Any]:
        with self._errors(), self._client.stream("GET", self._url + path, timeout=_TIMEOUT_S) as answer:
            body = _read(answer, _MAX_LIST_BYTES)
            if answer.status_code != 200:
                raise _refusal(self._url, answer.status_code, body)
            fields = json.loads(body)
        if not isinstance(fields, dict):
            raise Unavailable(f"what answers at {self._url} is not an Atoll server")
        return fields

    def _errors(self) -> _Explained:
        return _Explained(self._url)


class _Explained:
    """Turns what the client raises into an error of ours."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        import httpx2 as httpx

        if isinstance(error, httpx.HTTPError | httpx.InvalidURL | ValueError | LookupError):
            why = str(error)[:200] or type(error).__name__
            mend = "start one with `atoll serve`, or name it: --url"
            raise Unavailable(f"no Atoll server answers at {self._url}", why=why, mend=mend) from None


def _read(answer: httpx.Response, max_bytes: int) -> bytes:
    data = b""
    for part in answer.iter_bytes():
        data += part
        if len(data) > max_bytes:
            raise Unavailable(f"the server's answer is larger than {max_bytes} bytes")
    return data


def _pieces(chunk: dict[str, Any]) -> Iterator[str]:
    if isinstance(error := chunk.get("error"), dict):
        raise Unavailable(str(error.get("message"))[:500])
    for choice in chunk.get("choices") or ():
        if text := (choice.get("delta") or {}).get("content"):
            yield str(text)


def _refusal(url: str, status: int, body: bytes) -> AtollError:
    try:
        message = str(json.loads(body)["error"]["message"])[:500]
    except (ValueError, LookupError, TypeError):
        return Unavailable(f"what answers at {url} is not an Atoll server", why=f"it answers {status}")
    kinds: dict[int, type[AtollError]] = {401: Unauthorized, 403: Forbidden, 404: AdapterNotFound}
    if status in kinds:
        return kinds[status](message, mend="give a key: --key or ATOLL_KEY" if status == 401 else None)
    return RequestInvalid(message) if status < 500 else Unavailable(message)
