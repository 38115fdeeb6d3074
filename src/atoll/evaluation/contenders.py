"""Who answers beside the adapter and its base: how contenders are named on the command line, and what they need."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from atoll.config.explain import did_you_mean
from atoll.errors import UsageError
from atoll.evaluation.outputs import ADAPTER, BASE

MAJORITY = "majority"
NEAREST = "nearest"
ALWAYS = (BASE, ADAPTER, MAJORITY, NEAREST)
MAX_SHOTS = 64
OPENAI_KEY = "OPENAI_API_KEY"
REMOTE_KEY = "ATOLL_REMOTE_KEY"
_MAX_CHARS = 512
_MAX_NAME_CHARS = 72
_FORMS = "few-shot:K, openai:MODEL and http://HOST/v1#MODEL"


@dataclass(frozen=True)
class FewShot:
    """The base model with `num_shots` examples of the train split before each prompt."""

    num_shots: int

    kind: Literal["few_shot"] = "few_shot"

    @property
    def name(self) -> str:
        return f"few_shot_{self.num_shots}"


@dataclass(frozen=True)
class Remote:
    """A model behind an OpenAI-compatible interface; `url` ends in its version (`/v1`), None for OpenAI's own."""

    model: str
    url: str | None = None

    kind: Literal["remote"] = "remote"

    @property
    def name(self) -> str:
        """Safe as a file's name, and different for different models."""
        place = "openai" if self.url is None else self.url.partition("://")[2]
        given = f"{place}_{self.model}"
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", given).strip("._-")
        if self.url is None and len(name) <= _MAX_NAME_CHARS and name == given:
            return name
        return f"{name[:_MAX_NAME_CHARS]}_{hashlib.sha256(given.encode()).hexdigest()[:6]}"

    @property
    def detail(self) -> str:
        return f"{self.model} at {'api.openai.com' if self.url is None else self.url}"

    def key(self) -> str | None:
        """The key from the environment. Raises UsageError where OpenAI's is missing."""
        if self.url is not None:
            return os.environ.get(REMOTE_KEY) or None
        key = os.environ.get(OPENAI_KEY)
        if not key:
            mend = f"export {OPENAI_KEY}=..., or leave this contender out"
            raise UsageError(f"there is no key for openai:{self.model}", where=OPENAI_KEY, mend=mend)
        return key


Contender = FewShot | Remote


def parse_contenders(texts: Sequence[str]) -> tuple[Contender, ...]:
    """The contenders that `--against` names, each once; those that always answer may be named and change nothing.

    Raises UsageError for a text that names none.
    """
    wanted = dict.fromkeys(_parse(text) for text in texts if text not in ALWAYS)
    return tuple(wanted)


def _parse(text: str) -> Contender:
    kind, _, rest = text.partition(":")
    if len(text) > _MAX_CHARS or not text.isprintable():
        raise _wrong(text, f"a contender has at most {_MAX_CHARS} printable characters")
    if kind in ("few-shot", "few_shot"):
        return _few_shot(text, rest)
    if kind == "openai":
        if not rest.strip():
            raise _wrong(text, "it names no model", "write for example openai:gpt-4o")
        return Remote(rest)
    if kind in ("http", "https"):
        return _at_address(text)
    guess = did_you_mean(kind, (*ALWAYS, "few-shot", "openai", "http"))
    raise _wrong(text, None, f"did you mean {guess}?" if guess else None)


def _few_shot(text: str, count: str) -> FewShot:
    if not count.isascii() or not count.isdigit() or not 1 <= int(count[:9]) <= MAX_SHOTS:
        raise _wrong(text, f"the number of examples is not from 1 to {MAX_SHOTS}", "write for example few-shot:3")
    return FewShot(int(count))


def _at_address(text: str) -> Remote:
    mend = "write for example http://127.0.0.1:3000/v1#my-adapter"
    try:
        parts = urlsplit(text)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError as error:
        raise _wrong(text, f"not an address: {error}", mend) from None
    if parts.username is not None or parts.password is not None:
        # The text itself is left out: whoever reads the message would read the password.
        raise UsageError("an address with a user or a password", where="--against", mend=f"put the key in {REMOTE_KEY}")
    if not has_host or parts.query:
        raise _wrong(text, "the address has no host, or a query", mend)
    if not parts.fragment.strip():
        raise _wrong(text, "it does not say which model, after #", mend)
    return Remote(parts.fragment, text.partition("#")[0].rstrip("/"))


def _wrong(text: str, why: str | None, mend: str | None = None) -> UsageError:
    what = f"{text[:80]!r} is no contender"
    known = f"beside {', '.join(ALWAYS)}, which always answer, there are {_FORMS}"
    return UsageError(what, where="--against", why=why, mend=f"{mend}; {known}" if mend else known)
