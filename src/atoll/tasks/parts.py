"""Rows as their files have them, and the parts of a file that a seed draws."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from atoll.config.explain import did_you_mean
from atoll.config.task import PartConfig
from atoll.errors import DataError


class Record(NamedTuple):
    """A row as its file has it, and where it stands there."""

    values: dict[str, Any]
    where: str


def take_part(records: Sequence[Record], part: PartConfig) -> list[Record]:
    """The rows of one part, in the order of their file.

    Groups of rows (those that agree in `together`) are ordered by a hash of their content and the seed, within each
    value of `stratify`, and cut at the shares: parts that do not overlap share no group, and parts that cover 0 to 1
    hold every row once. Raises DataError for a column that a row does not have.
    """
    keys = [_key(record, part) for record in records]
    strata: dict[str, dict[bytes, None]] = defaultdict(dict)
    stratum_of: dict[bytes, str] = {}
    for key, record in zip(keys, records, strict=True):
        # Rows that stay together go where the first of them belongs.
        stratum = stratum_of.setdefault(key, _text(record, part.stratify) if part.stratify else "")
        strata[stratum][key] = None
    kept = {
        key
        for groups in strata.values()
        for key in sorted(groups)[round(part.start * len(groups)) : round(part.end * len(groups))]
    }
    return [record for key, record in zip(keys, records, strict=True) if key in kept]


def _key(record: Record, part: PartConfig) -> bytes:
    columns = part.together or tuple(record.values)
    content = {column: _text(record, column) for column in columns}
    text = json.dumps([part.seed, content], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _text(record: Record, column: str) -> str:
    if column not in record.values:
        guess = did_you_mean(column, map(str, record.values))
        mend = f"did you mean `{guess}`?" if guess else "the columns are " + ", ".join(map(str, record.values))
        raise DataError(f"the part names the column `{column}`, which is missing", where=record.where, mend=mend)
    value = record.values[column]
    return "" if value is None else as_text(value)


def as_text(value: Any) -> str:
    """A value as its file writes it: 1 is "1", 0.5 is "0.5", true is "true", a list or mapping is JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
