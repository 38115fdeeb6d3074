"""A tiny base with adapters, and an engine over it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from atoll.engine import Engine
from support.engines import World, make_world, one_torch_thread


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with one_torch_thread():
        yield make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def engine(world: World) -> Iterator[Engine]:
    engine = world.engine(max_batch_tokens=32)
    yield engine
    engine.close()
