"""Votes between two answers: a file a tenant, one JSON line each, kept for good and given back as preference data."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from atoll.errors import Overloaded, StorageError
from atoll.log import get_logger

logger = get_logger(__name__)

MAX_FILE_BYTES = 64 << 20
"""Of one tenant's votes."""
MAX_LINE_BYTES = 4 << 20

Winner = Literal["a", "b", "tie"]


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One vote. contenders, answers: A's, then B's. adapter: whose template made the prompt. time: unix seconds."""

    tenant: str
    key_id: str
    time: float
    adapter: str
    inputs: dict[str, str]
    prompt: str
    contenders: tuple[str, str]
    answers: tuple[str, str]
    winner: Winner

    def preference(self) -> dict[str, Any] | None:
        """A line of preference data as trainers read it; None for a tie, which prefers nothing."""
        if self.winner == "tie":
            return None
        chosen, rejected = (0, 1) if self.winner == "a" else (1, 0)
        return {
            "prompt": self.prompt,
            "chosen": self.answers[chosen],
            "rejected": self.answers[rejected],
            "chosen_adapter": self.contenders[chosen],
            "rejected_adapter": self.contenders[rejected],
            "adapter": self.adapter,
            "inputs": self.inputs,
            "time": self.time,
        }


class VoteJournal:
    """The folder of all votes. Methods block: call them in threads. Several servers may share it."""

    def __init__(self, folder: Path, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self._folder = folder
        self._max_file_bytes = max_file_bytes
        self._lock = threading.Lock()

    def path(self, tenant: str) -> Path:
        """The file of a tenant's votes. A tenant's own name need not be one that files can have."""
        return self._folder / f"{hashlib.sha256(tenant.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.jsonl"

    def append(self, vote: Vote) -> None:
        """Write a vote; it is on the disk when this returns. Raises Overloaded when its file is full, StorageError."""
        path = self.path(vote.tenant)
        line = json.dumps(asdict(vote), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            with self._lock:
                self._folder.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "r+b", buffering=0) as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    self._write(file.fileno(), line)
        except OSError as error:
            raise StorageError("the vote could not be kept", where=str(path), why=error.strerror) from None

    def _write(self, descriptor: int, line: bytes) -> None:
        size = os.fstat(descriptor).st_size
        if size + len(line) > self._max_file_bytes:
            raise Overloaded("there is no room for more votes", mend="export them, and have their file moved away")
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # of a process that was killed while it wrote
            line = b"\n" + line
        while line:
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)

    def read(self, tenant: str) -> Iterator[Vote]:
        """The votes of one tenant, oldest first. A line that is damaged is left out, and logged."""
        try:
            file = self.path(tenant).open("rb")
        except FileNotFoundError:
            return
        num_damaged = 0
        with file:
            while line := file.readline(MAX_LINE_BYTES):
                try:
                    vote = _parse(line)
                except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
                    num_damaged += 1
                    continue
                if vote.tenant == tenant:
                    yield vote
        if num_damaged:
            logger.warning("%d lines of the votes are damaged", num_damaged)


def _parse(line: bytes) -> Vote:
    fields = json.loads(line)
    one, other = fields.pop("contenders")
    first, second = fields.pop("answers")
    if fields["winner"] not in ("a", "b", "tie"):
        raise ValueError(fields["winner"])
    return Vote(**fields, contenders=(one, other), answers=(first, second))
