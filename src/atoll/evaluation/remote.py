"""One request to an OpenAI-compatible endpoint, and what every way to fail means: try again, count it, or stop.

Chat completions where the adapter's contract uses chat, completions with the whole text elsewhere; OpenAI's own models
are always asked by chat. The client's own retries are off: these ones are bounded, and paid for.
"""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import anyio
import httpx2
import openai
from pydantic import BaseModel, Field, ValidationError

from atoll.errors import Forbidden, NotFound, Unauthorized, Unavailable
from atoll.evaluation.contenders import OPENAI_KEY, REMOTE_KEY, Remote
from atoll.evaluation.journal import Entry
from atoll.evaluation.remote_call import RemoteCall, RetryPolicy
from atoll.log import redact

MAX_BODY_BYTES = 4 << 20
MAX_STOPS = 4  # of OpenAI's interface; the others end the answer here
_MAX_CHARS_PER_TOKEN = 128
_MAX_SAID_CHARS = 300
_TRY_AGAIN = frozenset({408, 409, 425, 429})


class TryAgain(Exception):
    """No answer this time. is_billed: whether the provider may have made one that never came."""

    def __init__(self, why: str, *, retry_after_s: float | None = None, is_billed: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.retry_after_s = retry_after_s
        self.is_billed = is_billed


class Refused(Exception):
    """The provider will not answer this prompt; nothing is billed."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = Field(default=None, max_length=40)


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0, le=10**9)
    completion_tokens: int = Field(ge=0, le=10**9)


class _Reply(BaseModel):
    choices: list[_Choice]
    model: str | None = Field(default=None, max_length=200)
    usage: _Usage | None = None


class RemoteClient:
    """Asks one contender; to be used in the one event loop that it was made in."""

    def __init__(self, contender: Remote, policy: RetryPolicy) -> None:
        """Raises UsageError where the key is missing."""
        self._contender = contender
        self._policy = policy
        key = contender.key()
        # The client insists on a key, and tells everybody the account at OpenAI that its environment names.
        kept_back = [] if key else ["Authorization"]
        kept_back += ["OpenAI-Organization", "OpenAI-Project"] if contender.url else []
        self._headers = dict.fromkeys(kept_back, openai.omit)
        self._client = openai.AsyncOpenAI(
            api_key=key or "none",
            base_url=contender.url,
            max_retries=0,
            timeout=policy.timeout_s,
        )

    async def close(self) -> None:
        await self._client.close()

    async def attempt(self, call: RemoteCall) -> Entry:
        """One request; the answer may be one that counts as a failure. Raises TryAgain, Refused, or why to stop."""
        started_at_s = time.perf_counter()
        try:
            with anyio.fail_after(self._policy.timeout_s):
                body = await self._body(call)
        except openai.APIStatusError as error:
            raise self._meaning(error) from None
        except (openai.APIConnectionError, httpx2.TransportError, TimeoutError) as error:
            is_unsent = isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout)
            raise TryAgain(_connection_text(error), is_billed=not is_unsent) from None
        return _entry(call, body, seconds=time.perf_counter() - started_at_s)

    async def _body(self, call: RemoteCall) -> bytes:
        body = bytearray()
        async with self._request(call) as response:
            async for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise TryAgain(f"the answer has more than {MAX_BODY_BYTES} bytes", is_billed=True)
        return bytes(body)

    def _request(self, call: RemoteCall) -> Any:
        is_openai = self._contender.url is None
        fields: dict[str, Any] = {
            "model": self._contender.model,
            "temperature": 0,
            "extra_headers": self._headers,
            # OpenAI's newer models refuse the older name, which other servers know alone.
            "max_completion_tokens" if is_openai else "max_tokens": call.max_new_tokens,
        }
        if call.stop:
            fields["stop"] = list(call.stop[:MAX_STOPS])
        if isinstance(call.prompt, str):
            return self._client.completions.with_streaming_response.create(prompt=call.prompt, **fields)
        messages: Any = list(call.prompt)
        return self._client.chat.completions.with_streaming_response.create(messages=messages, **fields)

    def _meaning(self, error: openai.APIStatusError) -> Exception:
        status, said = error.status_code, f"it says: {_said(error)}"
        who = self._contender.detail
        if status in (401, 403):
            variable = OPENAI_KEY if self._contender.url is None else REMOTE_KEY
            kind = Unauthorized if status == 401 else Forbidden
            return kind(f"{who} does not let us in", why=said, mend=f"check the key in {variable}")
        if status == 404:
            return NotFound(f"there is no {who}", why=said, mend="check the model's name and the address")
        if status == 402 or error.code == "insufficient_quota":
            return Unavailable(f"the account at {who} has no credit left", why=said, mend="top it up, then run again")
        if status in _TRY_AGAIN or status >= 500:
            after_s = retry_after_s(error.response.headers, datetime.now(UTC))
            if after_s is not None and after_s > self._policy.max_retry_after_s:
                why = f"it asks to wait {after_s:.0f} s"
                return Unavailable(f"{who} does not answer now", why=why, mend="run again later: answers are kept")
            return TryAgain(f"status {status}: {_said(error)}", retry_after_s=after_s)
        return Refused(f"status {status}: {_said(error)}")


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds from now that a Retry-After header names, as a number or a date; None for none and for nonsense."""
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(text)
            seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _entry(call: RemoteCall, body: bytes, *, seconds: float) -> Entry:
    try:
        reply = _Reply.model_validate_json(body)
    except ValidationError:
        raise TryAgain("the answer is not what the interface promises", is_billed=True) from None
    if not reply.choices:
        raise TryAgain("the answer holds no choice", is_billed=True)
    choice = reply.choices[0]
    text = choice.message.content if choice.message else choice.text
    error = None
    if text is None:
        error = f"the answer holds no text (finish reason {choice.finish_reason})"
    elif len(text) > (call.max_new_tokens + 1) * _MAX_CHARS_PER_TOKEN:
        error = f"the answer is much longer than the {call.max_new_tokens} tokens that were asked for"
    ends = [place for stop in call.stop if (place := (text or "").find(stop)) >= 0]
    usage = reply.usage
    return Entry(
        key=call.key,
        prediction="" if text is None or error else text[: min(ends, default=None)],
        finish_reason="stop" if ends else choice.finish_reason,
        num_prompt_tokens=usage.prompt_tokens if usage else call.num_prompt_tokens,
        # Without a count the most is assumed: a bill must not look smaller than it is.
        num_new_tokens=usage.completion_tokens if usage else call.max_new_tokens,
        error=error,
        model=reply.model,
        seconds=round(seconds, 6),
    )


def _connection_text(error: Exception) -> str:
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return "no answer in time"
    cause = error.__cause__ or error
    return f"the connection failed: {type(cause).__name__} {str(cause)[:_MAX_SAID_CHARS]}".strip()


def _said(error: openai.APIStatusError) -> str:
    """What the provider says of an error, on one line and without anything secret."""
    body = error.body
    message = body.get("message") if isinstance(body, Mapping) else None
    text = message if isinstance(message, str) else error.message
    return redact(" ".join(text.split()))[:_MAX_SAID_CHARS]
