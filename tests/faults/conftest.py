"""The small experiment that the campaign disturbs, run once for all tests of this folder in a process."""

from __future__ import annotations

import pytest

from tests.faults.world import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("faults") / "a store")
