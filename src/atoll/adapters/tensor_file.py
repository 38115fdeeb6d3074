"""Reads a safetensors file in two steps: the header, which says what is there, then the body.

Between the two the caller refuses what it does not want, before any memory is taken for it. The body is read once into
a buffer of the caller's, so that the bytes whose digest was checked are the bytes that are used, whatever happens to
the file meanwhile. Source of the rules: the safetensors format, huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from atoll.errors import AdapterInvalid

MAX_HEADER_BYTES = 8 << 20
MAX_DIMENSIONS = 8
MAX_OFFSET = 1 << 48
METADATA_KEY = "__metadata__"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# The bits of the exponent; a number whose exponent is all ones is an infinity or no number at all.
_EXPONENTS: dict[torch.dtype, tuple[type[np.unsignedinteger[Any]], int]] = {
    torch.float32: (np.uint32, 0x7F80_0000),
    torch.float16: (np.uint16, 0x7C00),
    torch.bfloat16: (np.uint16, 0x7F80),
}
_CHECKED_AT_ONCE = 1 << 16


class TensorInfo(NamedTuple):
    """One tensor as the header describes it. start, stop: bytes from the beginning of the body."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class TensorFile:
    """An open safetensors file whose header has been read and found sound. body_bytes: how much comes after it."""

    tensors: dict[str, TensorInfo]
    body_bytes: int
    _header: bytes
    _file: BufferedReader
    _where: str

    def read_body(self, buffer: Tensor) -> None:
        """Fill `buffer`, uint8 of at least body_bytes, from its beginning. Raises AdapterInvalid if the file shrank."""
        if self._file.readinto(buffer.numpy().data[: self.body_bytes]) < self.body_bytes:
            raise _damaged("it ends before its last tensor", self._where)

    def sha256(self, buffer: Tensor) -> str:
        """The digest of the whole file, from the header and the body that `read_body` put into `buffer`."""
        digest = hashlib.sha256(self._header)
        digest.update(buffer.numpy().data[: self.body_bytes])
        return digest.hexdigest()


@contextmanager
def open_tensors(path: Path, max_bytes: int) -> Iterator[TensorFile]:
    """Open a file and read its header. Raises AdapterInvalid where it is too large or breaks a rule of the format."""
    where = str(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise AdapterInvalid(f"the file is larger than {max_bytes / (1 << 30):.3g} GiB", where=where)
        prefix = file.read(8)
        header_bytes = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or header_bytes > min(size - 8, MAX_HEADER_BYTES):
            raise _damaged(f"its header would have {header_bytes} bytes", where)
        header = file.read(header_bytes)
        tensors = _parse_header(header, size - 8 - header_bytes, where)
        yield TensorFile(tensors, size - 8 - header_bytes, prefix + header, file, where)


class Body:
    """The tensors inside a buffer that `read_body` filled, without copies. buffer: uint8, a multiple of 4 bytes."""

    def __init__(self, buffer: Tensor) -> None:
        self._typed = {dtype: buffer.view(dtype) for dtype in DTYPES.values()}

    def matrix(self, info: TensorInfo) -> Tensor:
        """A two-dimensional tensor."""
        start = info.start // info.dtype.itemsize
        return torch.as_strided(self._typed[info.dtype], info.shape, (info.shape[1], 1), start)

    def find_not_finite(self, tensors: Mapping[str, TensorInfo]) -> str | None:
        """The first of the matrices that holds NaN or infinity."""
        dtypes = {info.dtype for info in tensors.values()}
        if len(dtypes) == 1 and _is_finite(self._typed[dtypes.pop()]):
            return None
        return next((key for key, info in tensors.items() if not _is_finite(self.matrix(info))), None)


def _is_finite(tensor: Tensor) -> bool:
    """Tests the bits, on the calling thread alone and many times faster than torch does for bfloat16."""
    integer, exponent = _EXPONENTS[tensor.dtype]
    bits = tensor.view(torch.uint8).numpy().reshape(-1).view(integer)
    return not any(
        ((bits[i : i + _CHECKED_AT_ONCE] & exponent) == exponent).any() for i in range(0, len(bits), _CHECKED_AT_ONCE)
    )


def _parse_header(header: bytes, body_bytes: int, where: str) -> dict[str, TensorInfo]:
    try:
        fields = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"its header is not valid JSON: {str(error)[:200]}", where) from None
    if not isinstance(fields, dict):
        raise _damaged("its header is not a JSON object", where)
    tensors = {key: _parse_tensor(key, field, where) for key, field in fields.items() if key != METADATA_KEY}
    position = 0
    for start, stop, key in sorted((info.start, info.stop, key) for key, info in tensors.items()):
        if start != position:
            raise _damaged(f"the tensor {key[:120]!r} begins at byte {start} instead of {position}", where)
        position = stop
    if position != body_bytes:
        raise _damaged(f"it has {body_bytes} bytes of tensors, its header describes {position}", where)
    return tensors


def _parse_tensor(key: str, field: Any, where: str) -> TensorInfo:
    try:
        dtype, shape, (start, stop) = str(field["dtype"]), tuple(field["shape"]), field["data_offsets"]
        numbers = (*shape, start, stop)
        is_described = len(shape) <= MAX_DIMENSIONS and set(map(type, numbers)) == {int}
    except (TypeError, KeyError, ValueError):
        is_described = False
    if not is_described or min(numbers) < 0 or max(numbers) >= MAX_OFFSET:
        raise _damaged(f"its header does not describe the tensor {key[:120]!r}", where)
    if dtype not in DTYPES:
        raise AdapterInvalid(f"{key[:120]!r} has dtype {dtype[:20]}", where=where, mend="save it as float32")
    info = TensorInfo(DTYPES[dtype], shape, start, stop)
    if stop - start != math.prod(shape) * info.dtype.itemsize or start % info.dtype.itemsize:
        raise _damaged(f"{dtype} of shape {list(shape)} cannot be bytes {start} to {stop}: {key[:120]!r}", where)
    return info


def _damaged(how: str, where: str) -> AdapterInvalid:
    return AdapterInvalid(f"the file is damaged: {how}", where=where, mend="copy or download it again")
