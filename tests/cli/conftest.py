"""A tiny base with a store, for the commands that need both."""

from __future__ import annotations

import pytest

from support.engines import World, make_world
from support.servers import publish_contracts


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Four adapters without a contract and two with one, in the folder `store` beside the base."""
    folder = tmp_path_factory.mktemp("world")
    world = make_world(folder)
    publish_contracts(world, folder)
    return world
