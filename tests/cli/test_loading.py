"""Which base the commands load for adapters, and in how many bits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from atoll.adapters.contract import BaseRef
from atoll.cli.loading import load_base_for
from atoll.errors import UsageError


def adapter(name: str, digest: str = "d", bits: int | None = None) -> Any:
    base = BaseRef.model_validate({"name": name, "digest": digest, "quantization_bits": bits})
    return SimpleNamespace(contract=SimpleNamespace(base=base))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int | None]]:
    """Name and bits of each base that is loaded."""
    calls: list[tuple[str, int | None]] = []

    def load_base(name: str, *, quantization: Any, **others: Any) -> None:
        calls.append((name, None if quantization is None else quantization.bits))

    monkeypatch.setattr("atoll.model.load.load_base", load_base)
    return calls


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        ([adapter("org/base@abc", bits=4)], None, ("org/base@abc", 4)),
        ([adapter("org/base@abc", bits=4)], "org/base@abc", ("org/base@abc", 4)),
        ([adapter("org/base@abc", bits=4)], "org/base", ("org/base", 4)),
        ([adapter("org/base", bits=8)], "org/base@abc", ("org/base@abc", 8)),
        ([adapter("a@1", "d1", bits=4), adapter("a@2", "d2")], "a@2", ("a@2", None)),
        ([adapter("org/base", bits=4)], "org/other", ("org/other", None)),
        ([], None, ("smollm2-135m-instruct", None)),
    ],
)
def test_the_bits_are_those_of_the_adapters_base_whatever_its_revision(
    loaded: list[tuple[str, int | None]], stored: list[Any], asked: str | None, expected: tuple[str, int | None]
) -> None:
    load_base_for(stored, asked)
    assert loaded == [expected]


def test_several_bases_want_a_choice(loaded: list[tuple[str, int | None]]) -> None:
    with pytest.raises(UsageError, match="several base models: a, b"):
        load_base_for([adapter("a", "d1"), adapter("b", "d2")], None)
    assert not loaded
