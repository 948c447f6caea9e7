"""A signal of each kind for `patchsae run`; `python -m tests.faults kills` sends more."""

from __future__ import annotations

import pytest

from tests.faults.kills import SIGNALS, kills
from tests.faults.world import World


@pytest.mark.slow
def test_kills_of_the_command_line(world: World) -> None:
    tally = kills(world, len(SIGNALS))
    assert tally.tries == len(SIGNALS) and tally.faults == []
