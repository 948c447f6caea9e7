"""Some of the crashes of the campaign; `python -m tests.faults crashes` does all of them."""

from __future__ import annotations

import pytest

from tests.faults.crashes import crashes
from tests.faults.world import World
from tests.support.crash import Action


def test_some_crashes(world: World) -> None:
    tally = crashes(world, "run", every=31)
    assert tally.tries > 3 and tally.faults == []


@pytest.mark.slow
@pytest.mark.parametrize(("action", "every"), [("run", 17), ("rerun", 40), ("gc", 20), ("discard", 3)])
def test_crashes(world: World, action: Action, every: int) -> None:
    tally = crashes(world, action, every)
    assert tally.tries > 3 and tally.faults == []
