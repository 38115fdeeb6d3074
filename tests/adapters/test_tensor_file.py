"""The reader of safetensors files against the format's own library."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from atoll.adapters.tensor_file import Body, open_tensors
from atoll.errors import AdapterInvalid

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
matrices = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from(DTYPES)),
    min_size=1,
    max_size=6,
)


def read(path: Path) -> dict[str, torch.Tensor]:
    """All matrices of a file, and its digest checked."""
    with open_tensors(path, 1 << 20) as file:
        buffer = torch.empty(-(-file.body_bytes // 4) * 4, dtype=torch.uint8)
        file.read_body(buffer)
        assert file.sha256(buffer) == hashlib.sha256(path.read_bytes()).hexdigest()
        body = Body(buffer)
        assert body.find_not_finite(file.tensors) is None
        return {key: body.matrix(info) for key, info in file.tensors.items()}


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(shapes=matrices, seed=st.integers(0, 99), metadata=st.none() | st.dictionaries(st.text(), st.text(), max_size=2))
def test_what_the_library_wrote_is_read_alike(
    tmp_path: Path, shapes: dict[str, tuple[int, int, torch.dtype]], seed: int, metadata: dict[str, str] | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(m, n, generator=generator).to(dtype) for name, (m, n, dtype) in shapes.items()}
    (tmp_path / "file").write_bytes(save(tensors, metadata))
    again = read(tmp_path / "file")
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_the_library_refuses_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Flips a byte of the header, and reads no file otherwise than the library does."""
    tensors = {"a": torch.ones(2, 3), "b": torch.ones(3, 2).half(), "c": torch.ones(1, 7).bfloat16()}
    content = bytearray(save(tensors))
    content[data.draw(st.integers(0, 7 + int.from_bytes(content[:8], "little")))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "file").write_bytes(content)
    try:
        ours = read(tmp_path / "file")
    except AdapterInvalid:
        return
    theirs = load(bytes(content))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_matrices_that_are_not_aligned_are_refused(tmp_path: Path) -> None:
    """No writer of today leaves them so, and a copy of each would take memory that nobody counts."""
    header = {
        "half": {"dtype": "F16", "shape": [1, 1], "data_offsets": [0, 2]},
        "whole": {"dtype": "F32", "shape": [1, 2], "data_offsets": [2, 10]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text + bytes(10))
    with pytest.raises(AdapterInvalid, match="cannot be bytes 2 to 10: 'whole'"):
        read(tmp_path / "file")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_found(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    largest = torch.finfo(dtype).max
    tensors = {
        "fine": torch.tensor([[largest, -largest, 0.0]], dtype=dtype),
        "wrong": torch.zeros(300, 300, dtype=dtype),
    }
    tensors["wrong"][250, 7] = value
    (tmp_path / "file").write_bytes(save(tensors))
    with open_tensors(tmp_path / "file", 1 << 20) as file:
        buffer = torch.zeros(-(-file.body_bytes // 4) * 4, dtype=torch.uint8)
        file.read_body(buffer)
    assert Body(buffer).find_not_finite(file.tensors) == "wrong"
