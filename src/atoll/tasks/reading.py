"""Rows from files: CSV, JSONL and Parquet, local or on the hub, several at once, with a query over them."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from atoll.config.task import SourceConfig
from atoll.errors import DataError
from atoll.tasks.parts import Record, as_text, take_part

__all__ = ["Record", "as_text", "has_local_files", "read_file", "read_source"]

_HUB_ADDRESS = re.compile(r"datasets/(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>refs/\w+/[\w.-]+|[^/]+))?/(?P<path>.+)")


def read_source(source: SourceConfig) -> list[Record]:
    """All rows of a source of files. Raises DataError, which names the file and, where it can, the row."""
    if source.path is None:
        raise ValueError("a source of files has a path")
    records = [record for path in _find(source.path) for record in read_file(path)]
    if source.sql is not None:
        records = _query(records, source.sql, source.path)
    return records if source.part is None else take_part(records, source.part)


def has_local_files(path: str) -> bool:
    """Whether a source's path or glob stands for files on this machine."""
    return "://" not in path and bool(_matches(path))


def hub_dataset(path: str) -> str:
    """`owner/name` or `owner/name@revision` of an address of the hub, "" for other paths."""
    match = _HUB_ADDRESS.fullmatch(path.removeprefix("hf://")) if path.startswith("hf://") else None
    if match is None:
        return ""
    return f"{match['repo']}@{match['revision']}" if match["revision"] else match["repo"]


def read_file(path: Path) -> Iterator[Record]:
    """The rows of one file, by its name's ending. Raises DataError."""
    read = _reader(path.name)
    if read is None:
        mend = "use .csv, .tsv, .jsonl or .ndjson (each also with .gz), or .parquet"
        raise DataError("this kind of file cannot be read", where=str(path), mend=mend)
    try:
        yield from read(path)
    except UnicodeDecodeError as error:
        mend = "save the file in UTF-8"
        raise DataError("the file is not UTF-8 text", where=str(path), why=str(error), mend=mend) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        mend = "fetch or compress the file again"
        raise DataError("the file is damaged", where=str(path), why=str(error), mend=mend) from error
    except OSError as error:
        mend = "check that it exists and may be read"
        raise DataError("the file cannot be read", where=str(path), why=error.strerror, mend=mend) from error


def _reader(name: str) -> Callable[[Path], Iterator[Record]] | None:
    kinds = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl}
    if name.endswith(".parquet"):
        return _read_parquet
    return kinds.get(Path(name.removesuffix(".gz")).suffix)


def _open_text(path: Path) -> io.TextIOBase:
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _read_csv(path: Path) -> Iterator[Record]:
    """Fields stay as they are written; line breaks inside quotes belong to their field."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    with _open_text(path) as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise DataError(f"two columns are called `{twice}`", where=f"{path}:1", mend="rename one of them")
            for fields in reader:
                where = f"{path}:{reader.line_num}"
                if fields and len(fields) != len(header):
                    mend = f'put a field that holds "{delimiter}" or a line break in double quotes'
                    what = f"the row has {len(fields)} fields, the header has {len(header)}"
                    raise DataError(what, where=where, mend=mend)
                if fields:
                    yield Record(dict(zip(header, fields, strict=True)), where)
        except csv.Error as error:
            mend = 'check the quotes around this row; a quote inside quotes is written ""'
            raise DataError("not valid CSV", where=f"{path}:{reader.line_num}", why=str(error), mend=mend) from error


def _read_jsonl(path: Path) -> Iterator[Record]:
    with _open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                column = f":{error.colno}" if isinstance(error, json.JSONDecodeError) else ""
                why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                mend = "each line must hold one JSON object"
                raise DataError("not valid JSON", where=f"{path}:{number}{column}", why=why, mend=mend) from error
            if not isinstance(values, dict):
                mend = 'write {"column": "value", ...}'
                raise DataError("the line holds no JSON object", where=f"{path}:{number}", mend=mend)
            yield Record(values, f"{path}:{number}")


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        number = 0
        for batch in file.iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield Record(values, f"{path}, row {number}")
    except pa.ArrowException as error:
        mend = "fetch or write the file again"
        raise DataError("not a valid Parquet file", where=str(path), why=str(error), mend=mend) from error


def _find(path: str) -> list[Path]:
    """The files that a path, glob or hub address stands for, sorted by name."""
    if path.startswith("hf://"):
        found = _fetch(path)
    elif re.match(r"[a-z][a-z0-9+.-]*://", path):
        mend = "download it and give the file's path, or use an hf://datasets/... address"
        raise DataError("this kind of address cannot be read", where=path, mend=mend)
    else:
        found = _matches(path)
    if not found:
        mend = "check the path, or name another folder of data with --data-root"
        raise DataError("there is no such file", where=path, mend=mend)
    return found


def _matches(path: str) -> list[Path]:
    exact = Path(path).expanduser()
    if exact.is_file():
        return [exact]
    names = sorted(glob.glob(str(exact), recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    return [Path(name) for name in names if Path(name).is_file()]


def _fetch(address: str) -> list[Path]:
    """Files of a data set on the hub, through its cache. HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are respected."""
    match = _HUB_ADDRESS.fullmatch(address.removeprefix("hf://"))
    if match is None:
        mend = "write hf://datasets/owner/name/path/in/it.parquet, with owner/name@revision for a revision"
        raise DataError("this is no address of a file in a data set", where=address, mend=mend)
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = snapshot_download(
            match["repo"], repo_type="dataset", revision=match["revision"], allow_patterns=match["path"]
        )
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        why = str(error).strip().split("\n")[0]
        mend = "check the network (and HF_TOKEN), or give a folder with the task's data with --data-root"
        raise DataError("the data set cannot be fetched from the hub", where=address, why=why, mend=mend) from error
    return _matches(str(Path(glob.escape(folder)) / match["path"]))


def _query(records: list[Record], sql: str, path: str) -> list[Record]:
    """The rows of a query over the table `data`. It sees that table only: no files, no network."""
    import duckdb
    import pyarrow as pa

    columns = dict.fromkeys(name for record in records for name in record.values)
    table = pa.table({name: _arrow(record.values.get(name) for record in records) for name in columns})
    with duckdb.connect(":memory:") as connection:
        connection.register("rows_of_path", table)
        connection.execute("CREATE TABLE data AS SELECT * FROM rows_of_path")
        connection.unregister("rows_of_path")
        connection.execute("SET python_enable_replacements = false")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        try:
            result = connection.execute(sql)
            names = [column[0] for column in result.description or []]
            rows = result.fetchall()
        except duckdb.Error as error:
            mend = f"the table `data` has the columns {', '.join(map(str, columns))}; CSV columns are text"
            raise DataError("the query failed", where=path, why=str(error), mend=mend) from error
    return [
        Record(dict(zip(names, row, strict=True)), f"{path}, row {number} of the query")
        for number, row in enumerate(rows, start=1)
    ]


def _arrow(values: Iterable[Any]) -> Any:
    """A column for queries; one whose values have several types becomes text, so that none changes its form."""
    import pyarrow as pa

    column = list(values)
    kinds = {type(value) for value in column if value is not None}
    if len(kinds) <= 1:
        try:
            return pa.array(column)
        except (pa.ArrowException, OverflowError):
            pass
    return pa.array([None if value is None else as_text(value) for value in column], type=pa.string())
