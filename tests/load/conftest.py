"""A store of signature adapters that the tests under load share; those that publish into it use names of their own."""

from __future__ import annotations

import pytest

from support.scale import scaled
from support.signed import SignedWorld


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> SignedWorld:
    return SignedWorld(tmp_path_factory.mktemp("signed"), scaled(100, 1000))
