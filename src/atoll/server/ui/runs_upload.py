"""Files that people upload to train on: taken to disk as they come, read with care, and turned into two splits."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from atoll.errors import DataError, NotFound, UsageError
from atoll.files import write_atomic
from atoll.server.errors import BodyTooLargeError
from atoll.tasks.reading import as_text, read_file

MAX_UPLOAD_BYTES = 64 << 20
MAX_ROWS = 200_000
MAX_COLUMNS = 200
NUM_PREVIEW_ROWS = 50
_MAX_UPLOADS = 20
_MAX_AGE_S = 7 * 24 * 3600
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_ID = re.compile(r"[0-9a-f]{24}")
_TARGET_NAMES = ("label", "target", "answer", "output", "completion", "response", "class", "category", "y", "summary")
_TEST_SHARE = 0.1
_MAX_TEST_ROWS = 500
_WANTED_TEST_ROWS = 50  # fewer say little about an adapter
_MAX_CLASSES = 20
_MAX_SHOWN_NAME = 80


@dataclass(frozen=True)
class Upload:
    """A file that was uploaded. title: the name that its owner gave it, for show only."""

    id: str
    title: str
    path: Path
    num_bytes: int


@dataclass(frozen=True)
class Sample:
    """The first rows of an upload, as text, and a guess at the column with the right answers."""

    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    target: str


class Uploads:
    """Uploaded files below one folder, each in one of its own with a random name."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_UPLOAD_BYTES) -> None:
        self._folder = folder
        self.max_bytes = max_bytes

    async def take(self, title: str, chunks: AsyncIterator[bytes]) -> Upload:
        """Write a body to disk as it comes. Raises BodyTooLargeError, or UsageError for a file of another kind."""
        suffix = Path(title.lower()).suffix
        if suffix not in _SUFFIXES:
            mend = f"use one of {', '.join(_SUFFIXES)}; unpack it first if it is packed"
            raise UsageError("this kind of file cannot be read", mend=mend)
        await anyio.to_thread.run_sync(self._make_room)
        upload_id = secrets.token_hex(12)
        folder = self._folder / upload_id
        folder.mkdir(parents=True)
        path = folder / f"data{suffix}"
        shown = "".join(char for char in Path(title).name if char.isprintable())[:_MAX_SHOWN_NAME]
        facts = json.dumps({"title": shown, "file": path.name}) + "\n"
        try:
            num_bytes = await self._write(path, chunks)
            await anyio.to_thread.run_sync(write_atomic, folder / "upload.json", facts)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Upload(upload_id, shown, path, num_bytes)

    def find(self, upload_id: str) -> Upload:
        """Raises NotFound."""
        folder = self._folder / upload_id
        if not _ID.fullmatch(upload_id) or not (folder / "upload.json").is_file():
            raise NotFound("there is no such upload", mend="upload the file again: only the latest ones are kept")
        facts = json.loads((folder / "upload.json").read_bytes())
        path = folder / facts["file"]
        return Upload(upload_id, facts["title"], path, path.stat().st_size)

    async def _write(self, path: Path, chunks: AsyncIterator[bytes]) -> int:
        num_bytes = 0
        async with await anyio.open_file(path, "wb") as file:
            async for chunk in chunks:
                num_bytes += len(chunk)
                if num_bytes > self.max_bytes:
                    raise BodyTooLargeError(f"the file is larger than {self.max_bytes >> 20} MiB")
                await file.write(chunk)
        if not num_bytes:
            raise UsageError("the file is empty", mend="choose another file")
        return num_bytes

    def _make_room(self) -> None:
        """Remove what is old, and the oldest where there are many."""
        if not self._folder.is_dir():
            return
        folders = sorted((path for path in self._folder.iterdir() if path.is_dir()), key=lambda p: p.stat().st_mtime)
        too_many = folders[: max(0, len(folders) - _MAX_UPLOADS + 1)]
        oldest_kept = time.time() - _MAX_AGE_S
        for folder in {*too_many, *(path for path in folders if path.stat().st_mtime < oldest_kept)}:
            shutil.rmtree(folder, ignore_errors=True)


def rows_of(upload: Upload) -> Iterator[dict[str, str]]:
    """All rows as text; a column that a row lacks, or has null in, is empty there. Raises DataError."""
    # Errors name the file as its owner knows it.
    try:
        for number, record in enumerate(read_file(upload.path), start=1):
            if number > MAX_ROWS or len(record.values) > MAX_COLUMNS:
                mend = f"cut it to {MAX_ROWS:,} rows and {MAX_COLUMNS} columns, or train with `atoll tune`"
                raise DataError("the file has too many rows or columns for this page", mend=mend)
            yield {
                str(name): "" if value is None else as_text(value).encode(errors="replace").decode()
                for name, value in record.values.items()
            }
    except DataError as error:
        where = (error.where or "").replace(str(upload.path), upload.title)
        raise DataError(error.what, where=where or upload.title, why=error.why, mend=error.mend) from None


def sample_of(upload: Upload) -> Sample:
    """The first rows. Raises DataError for a file that cannot be read, or has fewer than two columns."""
    rows = tuple(itertools.islice(rows_of(upload), NUM_PREVIEW_ROWS))
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    usable = tuple(name for name in columns if name and name == name.strip() and not set(name) & set("{}"))
    if len(usable) < 2:
        mend = "the first line of a CSV file names its columns; a JSONL file has one object a line"
        raise DataError("the file has fewer than two columns with names", where=upload.title, mend=mend)
    return Sample(usable, rows, guess_target(usable, rows))


def guess_target(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    """The column that most likely holds the answers: by its name, else the last one with few values, else the last."""
    by_name = {name.casefold(): name for name in columns}
    for wanted in _TARGET_NAMES:
        if wanted in by_name:
            return by_name[wanted]

    def has_classes(name: str) -> bool:
        values = {row.get(name, "") for row in rows}
        return 1 < len(values) <= min(_MAX_CLASSES, len(rows) // 2)

    return next(filter(has_classes, reversed(columns)), columns[-1])


@dataclass(frozen=True)
class Splits:
    """Rows to train on and rows to score on; rows with equal inputs are on the same side."""

    train: tuple[dict[str, str], ...]
    test: tuple[dict[str, str], ...]
    num_left_out: int


def make_splits(upload: Upload, inputs: Sequence[str], target: str) -> Splits:
    """Divide the rows that have an answer; the same file is divided alike everywhere. Raises DataError."""
    rows, num_left_out = [], 0
    for row in rows_of(upload):
        picked = {name: row.get(name, "") for name in (*inputs, target)}
        if picked[target].strip():
            rows.append(picked)
        else:
            num_left_out += 1
    keys = {_key(row, inputs) for row in rows}
    if len(keys) < 4:
        mend = "a file needs at least four rows with different inputs, better hundreds"
        raise DataError("there are too few rows to learn from", where=upload.title, mend=mend)
    wanted = min(_WANTED_TEST_ROWS, len(keys) // 4)
    num_test = min(max(wanted, int(len(keys) * _TEST_SHARE)), _MAX_TEST_ROWS)
    aside = set(sorted(keys)[:num_test])
    return Splits(
        tuple(row for row in rows if _key(row, inputs) not in aside),
        tuple(row for row in rows if _key(row, inputs) in aside),
        num_left_out,
    )


def _key(row: Mapping[str, str], inputs: Sequence[str]) -> bytes:
    return hashlib.sha256(json.dumps([row[name] for name in inputs]).encode()).digest()
