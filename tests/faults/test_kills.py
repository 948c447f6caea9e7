"""Two signals for `patchsae run`; `python -m tests.faults kills` sends more, and others."""

from __future__ import annotations

import pytest

from tests.faults.kills import kills
from tests.faults.world import World


@pytest.mark.slow
def test_kills_of_the_command_line(world: World) -> None:
    tally = kills(world, 2)
    assert tally.tries == 2 and tally.faults == []
