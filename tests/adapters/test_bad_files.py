"""A stranger's files: a named error for that adapter alone, before memory is taken, and nothing else happens."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.adapters.catalog import AdapterCatalog
from atoll.adapters.contract import CONTRACT_NAME
from atoll.adapters.peft_files import CONFIG_NAME, WEIGHTS_NAME, adapter_digest
from atoll.adapters.peft_io import read_adapter
from atoll.adapters.store import StoredAdapter
from atoll.errors import AdapterInvalid, AdapterNotFound, AtollError, UsageError
from support.residency import LAYER, PLAIN, Harness
from support.tiny import make_model

Header = dict[str, Any]
A = f"base_model.model.{LAYER}.lora_A.weight"
B = f"base_model.model.{LAYER}.lora_B.weight"


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    harness = Harness(tmp_path_factory.mktemp("harness"))
    harness.adapter("good", 1)
    yield harness
    harness.residency.close()


@pytest.fixture
def folder(harness: Harness, tmp_path: Path) -> Path:
    """A copy of a good adapter, to be damaged."""
    shutil.copytree(harness.store.resolve("good").folder, tmp_path / "bad")
    return tmp_path / "bad"


def write_header(folder: Path, header: bytes, *, length: int | None = None, size: int | None = None) -> None:
    """Put another header before the same tensors. size: the file's length in the end, without using disk for it."""
    data = (folder / WEIGHTS_NAME).read_bytes()
    body = data[8 + int.from_bytes(data[:8], "little") :]
    length = len(header) if length is None else length
    (folder / WEIGHTS_NAME).write_bytes(length.to_bytes(8, "little") + header + body)
    if size is not None:
        os.truncate(folder / WEIGHTS_NAME, size)


def header_of(folder: Path) -> Header:
    data = (folder / WEIGHTS_NAME).read_bytes()
    header: Header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def refuse(harness: Harness, adapter: StoredAdapter, message: str) -> None:
    """The adapter is refused by name, twice, and another one can still be loaded."""
    for _ in range(2):
        with pytest.raises(AtollError, match=message) as caught:
            harness.acquire(adapter)
        assert caught.value.where
        assert isinstance(caught.value, AdapterInvalid)
    harness.use(harness.store.resolve("good"))
    assert harness.residency.stats().num_loading == 0


def stored(folder: Path) -> StoredAdapter:
    try:
        digest = adapter_digest(folder)
    except AdapterInvalid:
        digest = f"unknown-{folder}"
    return StoredAdapter("bad", 0, digest, folder, None)


ENTRIES: dict[str, tuple[str, Any, str]] = {
    "no dtype": ("dtype", None, "does not describe"),
    "dtype a list": ("dtype", ["F32"], "dtype"),
    "dtype unknown": ("dtype", "F33", "dtype F33"),
    "dtype of 8 bits": ("dtype", "F8_E4M3", "dtype F8_E4M3"),
    "dtype too wide": ("dtype", "F64", "dtype F64"),
    "dtype of another size": ("dtype", "BF16", "cannot be bytes 0 to 1024"),
    "shape a number": ("shape", 4, "does not describe"),
    "shape negative": ("shape", [-4, -64], "does not describe"),
    "shape of fractions": ("shape", [4.0, 64], "does not describe"),
    "shape of booleans": ("shape", [True, 256], "does not describe"),
    "shape that overflows": ("shape", [1 << 40, 1 << 40], "cannot be bytes 0 to 1024"),
    "shape of many dimensions": ("shape", [1] * 100_000, "does not describe"),
    "shape of a huge number": ("shape", [10**4000, 0], "does not describe"),
    "shape of another size": ("shape", [4, 65], "cannot be bytes 0 to 1024"),
    "offsets negative": ("data_offsets", [-1024, 0], "does not describe"),
    "offsets backwards": ("data_offsets", [1024, 0], "damaged"),
    "offsets overlapping": ("data_offsets", [512, 1536], "begins at byte|beginning"),
    "offsets beyond the end": ("data_offsets", [1 << 40, (1 << 40) + 1024], "begins at byte"),
    "offsets huge": ("data_offsets", [1 << 60, (1 << 60) + 1024], "does not describe"),
    "offsets a string": ("data_offsets", "ab", "does not describe"),
    "offsets three": ("data_offsets", [0, 1024, 1024], "does not describe"),
    "offsets missing": ("data_offsets", None, "does not describe"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_of_the_header_that_breaks_the_format(harness: Harness, folder: Path, name: str) -> None:
    key, value, message = ENTRIES[name]
    header = header_of(folder)
    entry = header[A] | {key: value}
    header[A] = {k: v for k, v in entry.items() if v is not None}
    write_header(folder, json.dumps(header).encode())
    refuse(harness, stored(folder), message)


HEADERS: dict[str, tuple[bytes, dict[str, int], str]] = {
    "longer than the file": (b"{}", {"length": 1 << 40}, "header would have"),
    "as long as 64 bits say": (b"{}", {"length": (1 << 64) - 1}, "header would have"),
    "nine megabytes": (b"{}", {"length": 9 << 20, "size": 1 << 30}, "header would have"),
    "ten gigabytes behind it": (b"{}", {"size": 10 << 30}, "larger than 8 GiB"),
    "nothing behind it": (b"{}", {"size": 10}, "header describes|no weights"),
    "not JSON": (b"{'a': 1}", {}, "not valid JSON"),
    "not text": (b"\xff\xfe\x00\x80", {}, "not valid JSON"),
    "a list": (b"[]", {}, "not a JSON object"),
    "deep": (b'{"a":' * 200_000, {}, "not valid JSON"),
    "entries that are numbers": (b'{"a": 1}', {}, "does not describe"),
    "an infinite shape": (b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}', {}, "does not describe"),
    "empty": (b"{}", {}, "header describes 0"),
    "eight bytes short": (b"", {"size": 5}, "header would have"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_none(harness: Harness, folder: Path, name: str) -> None:
    header, options, message = HEADERS[name]
    write_header(folder, header, **options)
    refuse(harness, StoredAdapter("bad", 0, name, folder, None), message)


def test_bytes_that_no_tensor_owns_are_refused(harness: Harness, folder: Path) -> None:
    with (folder / WEIGHTS_NAME).open("ab") as file:
        file.write(b"\0" * 8)
    refuse(harness, stored(folder), "its header describes")


def sparse(folder: Path, rank: int, layer: str = LAYER) -> Path:
    """An adapter of any size that takes no disk."""
    size = rank * 64 * 4
    header = {
        f"base_model.model.{layer}.lora_{side}.weight": {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [index * size, (index + 1) * size],
        }
        for index, (side, shape) in enumerate((("A", [rank, 64]), ("B", [64, rank])))
    }
    text = json.dumps(header).encode()
    write_header(folder, text, size=8 + len(text) + 2 * size)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("rank", "layer", "message"),
    [
        (100_000, LAYER, "rank 100000 is above the bank's largest rank 8"),
        (900_000, LAYER, "rank 900000 is above"),
        (8, "model.layers.7.self_attn.q_proj", "no linear layer 'model.layers.7.self_attn.q_proj'"),
        (8, "transformer.h.0.attn.c_attn.q_proj", "no linear layer"),
        (8, "../../etc.q_proj", "no linear layer"),
        (8, "x" * 5000 + ".q_proj", "is not supported"),
    ],
)
def test_what_does_not_fit_the_base_is_refused_before_its_weights_are_read(
    harness: Harness, folder: Path, rank: int, layer: str, message: str
) -> None:
    adapter = replace(stored(folder), folder=sparse(folder, rank, layer), digest=f"{rank}{layer}")
    with pytest.raises(AdapterInvalid, match=message):
        read_adapter(folder, check=harness.bank.check, allocate=lambda num_bytes: pytest.fail("memory was taken"))
    refuse(harness, adapter, message)


CONFIGS: dict[str, tuple[Any, str]] = {
    "r 0": ({"r": 0}, "r must be"),
    "r 100000": ({"r": 100_000}, "the config says 100000"),
    "r a fraction": ({"r": 4.5}, "r must be a whole number"),
    "r for one layer 0": ({"rank_pattern": {"q_proj": 0}}, "rank_pattern must be"),
    "ranks a list": ({"rank_pattern": [4]}, "rank_pattern must map"),
    "alpha NaN": ({"lora_alpha": float("nan")}, "lora_alpha must be"),
    "alpha infinite": ({"lora_alpha": float("inf")}, "lora_alpha must be"),
    "alpha for one layer infinite": ({"alpha_pattern": {"q_proj": float("inf")}}, "alpha_pattern must be"),
    "alpha missing": ({"lora_alpha": None}, "lora_alpha must be"),
    "many patterns": ({"alpha_pattern": {f"m{n}": 1 for n in range(5000)}}, "5000 patterns"),
    "patterns that take long": ({"alpha_pattern": {f".*.*.*{n}": 1 for n in range(20)}}, "60 repeats"),
    "targets numbers": ({"target_modules": [1]}, "target_modules must be"),
    "excluded a number": ({"exclude_modules": 1}, "exclude_modules must be"),
    "layers a string": ({"layers_to_transform": "0"}, "layers_to_transform must be"),
    "layers that take long": ({"layers_pattern": ["(a+)+"]}, "pattern"),
    "another layer": ({"layers_to_transform": [1]}, "target_modules does not select it"),
    "no layer": ({"target_modules": ["gate_proj"]}, "target_modules does not select it"),
    "DoRA": ({"use_dora": True}, "use_dora is not supported"),
}


def test_patterns_that_take_long_for_all_modules_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_adapter(folder)
    monkeypatch.setattr("atoll.adapters.peft_io.MAX_MATCHING_S", -1.0)
    with pytest.raises(AdapterInvalid, match="patterns of the config are too complex"):
        read_adapter(folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_cannot_be_served(harness: Harness, folder: Path, name: str) -> None:
    fields, message = CONFIGS[name]
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps(config | fields))
    refuse(harness, stored(folder), message)


@pytest.mark.parametrize("name", [CONFIG_NAME, CONTRACT_NAME, WEIGHTS_NAME])
def test_gigabytes_are_refused_without_reading_them(harness: Harness, folder: Path, name: str) -> None:
    (folder / name).touch()
    os.truncate(folder / name, 20 << 30)
    with pytest.raises(AdapterInvalid, match="larger than"):
        adapter_digest(folder)
    with pytest.raises(AtollError, match="larger than"):
        AdapterCatalog(harness.store, [folder.parent]).resolve("bad", "local")
    refuse(harness, stored(folder), "larger than")


def test_pipes_loops_and_odd_paths_are_not_adapters(harness: Harness, folder: Path) -> None:
    root = folder.parent
    (root / "loop").symlink_to(root / "loop")
    (folder / WEIGHTS_NAME).unlink()
    os.mkfifo(folder / WEIGHTS_NAME)
    catalog = AdapterCatalog(harness.store, [root])
    refuse(harness, catalog.resolve("bad", "local"), f"no {WEIGHTS_NAME}")
    (folder / CONFIG_NAME).unlink()
    os.mkfifo(folder / CONFIG_NAME)
    for path in ("bad", "loop", "loop/bad", "a" * 400, "../" * 100, "/", ".", "bad/..", "~root", "bad\n"):
        with pytest.raises((AdapterNotFound, UsageError)):
            catalog.resolve(path, "local")


# Bits


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_bit_that_flips_in_the_store_is_always_told(
    harness: Harness, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    good = harness.store.resolve("good")
    folder = tmp_path_factory.mktemp("flip")
    shutil.copytree(good.folder, folder, dirs_exist_ok=True)
    flip(folder / data.draw(st.sampled_from([CONFIG_NAME, WEIGHTS_NAME])), data)
    with pytest.raises(AdapterInvalid):
        read_adapter(folder, verify=good.verify, check=harness.bank.check)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_flipped_bytes_end_in_a_named_error_or_in_weights_that_fit(
    harness: Harness, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """In a folder outside of the store nobody knows what the bytes were: the adapter may answer otherwise."""
    folder = tmp_path_factory.mktemp("flip")
    shutil.copytree(harness.store.resolve("good").folder, folder, dirs_exist_ok=True)
    for _ in range(data.draw(st.integers(1, 4))):
        flip(folder / data.draw(st.sampled_from([CONFIG_NAME, WEIGHTS_NAME])), data, first=400)
    try:
        adapter = read_adapter(folder, check=harness.bank.check)
    except AdapterInvalid:
        return
    harness.bank.check(adapter)
    assert all(torch.isfinite(lora.a).all() and torch.isfinite(lora.b).all() for lora in adapter.modules.values())


def flip(path: Path, data: st.DataObject, first: int | None = None) -> None:
    """Change one byte, among the first ones if so wished: there stands what is parsed."""
    content = bytearray(path.read_bytes())
    index = data.draw(st.integers(0, min(first or len(content), len(content)) - 1))
    content[index] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)


def test_a_damaged_object_is_replaced_when_it_is_published_again(harness: Harness, tmp_path: Path) -> None:
    adapter = harness.adapter("healed", 5)
    source = tmp_path / "copy"
    shutil.copytree(adapter.folder, source)
    content = bytearray((adapter.folder / WEIGHTS_NAME).read_bytes())
    content[-1] ^= 1
    (adapter.folder / WEIGHTS_NAME).write_bytes(content)
    with pytest.raises(AdapterInvalid, match="the files of healed@1 are damaged") as caught:
        harness.acquire(adapter)
    assert "publish healed again" in (caught.value.mend or "")
    assert harness.store.publish("healed", source) == adapter
    harness.use(adapter)


def test_the_base_of_the_tests_is_the_one_that_the_adapters_were_made_for() -> None:
    assert all(torch.equal(a, b) for a, b in zip(PLAIN.parameters(), make_model().parameters(), strict=True))
