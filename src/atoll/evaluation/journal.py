"""Every answer as it comes, so that nothing is computed or paid twice: `<folder>/raw/partial/*.jsonl`.

A process appends to a file of its own, one line an answer, flushed at once: a killed process loses what was under way
and no more. The next evaluation takes from all files what has the same key. A key stands for who answered (a model by
the digest of its weights, or an address), the prompt and the sampling, so that answers of other adapters, prompts or
settings are never taken for these.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from pydantic import Field, ValidationError

from atoll.evaluation.outputs import Part
from atoll.log import get_logger

FSYNC_EVERY_S = 2.0
_MAX_LINE_CHARS = 1 << 24

logger = get_logger(__name__)


class Entry(Part):
    """An answer, or with `is_lost` a provider's answer that was never read and is likely to be billed.

    error: why the answer counts as 0, where asking again would not change that. model: which model says that it has
    answered. seconds: a request's own, or for the engine, whose requests run mixed, those since the answer before.
    cost_usd: what a provider's tokens cost, None for the engine's answers and where no price is known.
    """

    key: str
    prediction: str = ""
    finish_reason: str | None = None
    num_prompt_tokens: int = Field(default=0, ge=0)
    num_new_tokens: int = Field(default=0, ge=0)
    error: str | None = None
    model: str | None = None
    seconds: float = Field(default=0.0, ge=0)
    cost_usd: float | None = Field(default=None, ge=0)
    is_lost: bool = False


def answer_key(**parts: Any) -> str:
    """A key for an answer to what `parts` describe; they must be JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Journal:
    """What earlier runs left below `folder`, and a file for this one's answers, made when the first comes."""

    def __init__(self, folder: Path, *, is_fresh: bool = False) -> None:
        """is_fresh: take nothing of earlier runs."""
        self._folder = folder / "raw" / "partial"
        self._entries: dict[str, Entry] = {}
        self._lost: dict[str, float] = {}
        self._file: TextIO | None = None
        self._synced_at_s = 0.0
        if not is_fresh:
            for path in sorted(self._folder.glob("*.jsonl")):
                self._read(path)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def get(self, key: str) -> Entry | None:
        """The answer with that key, an earlier run's or this one's."""
        return self._entries.get(key)

    def lost_usd(self, keys: Iterable[str]) -> float:
        """What providers may have billed for answers with these keys that never came."""
        return sum(self._lost.get(key, 0.0) for key in set(keys))

    def append(self, entry: Entry) -> None:
        """Keep an entry: in the file when this returns, on the disk within seconds."""
        self._note(entry)
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}.jsonl"
            self._file = (self._folder / name).open("x", encoding="utf-8")
        self._file.write(entry.model_dump_json(exclude_defaults=True) + "\n")
        self._file.flush()
        if time.monotonic() - self._synced_at_s >= FSYNC_EVERY_S:
            self._sync()

    def close(self) -> None:
        """Everything is on the disk when this returns; a second call changes nothing."""
        if self._file is not None:
            self._sync()
            self._file.close()
            self._file = None

    def _sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
        self._synced_at_s = time.monotonic()

    def _note(self, entry: Entry) -> None:
        if entry.is_lost:
            self._lost[entry.key] = self._lost.get(entry.key, 0.0) + (entry.cost_usd or 0.0)
        else:
            self._entries[entry.key] = entry

    def _read(self, path: Path) -> None:
        num_damaged = 0
        with path.open("rb") as file:
            while line := file.readline(_MAX_LINE_CHARS):
                try:
                    self._note(Entry.model_validate_json(line))
                except ValidationError:
                    num_damaged += 1  # a line that a killed process has torn, or somebody changed
        if num_damaged:
            logger.warning("lines of the journal cannot be read: they are asked again", extra={"lines": num_damaged})
